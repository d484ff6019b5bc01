"""The addresses under `/api/v1`, and what answers at each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from flask import Blueprint, Response, request

from holdfast_server.api import queries
from holdfast_server.api.answers import answer, refusal
from holdfast_server.api.body_limits import BASE, BodyLimits
from holdfast_server.api.documents import Documents
from holdfast_server.api.events import Streams
from holdfast_server.api.reads import Reads
from holdfast_server.api.writes import Writes
from holdfast_server.context import Context
from holdfast_server.store.changes import Watch
from holdfast_shared.errors import HoldfastError

# Given by waitress (`channel_request_lookahead`): whether the client has left. Others give nothing.
_CLIENT_GONE: Final = "waitress.client_disconnected"


def blueprint(context: Context, reads: Reads, limits: BodyLimits, stopping: threading.Event) -> Blueprint:
    """The whole API. Event streams end once `stopping` is set."""
    api = Blueprint("api", __name__, url_prefix=BASE)
    api.register_error_handler(HoldfastError, refusal)
    api.before_request(queries.check_printable)
    documents, writes = Documents(context), Writes(context, limits)
    streams = Streams(Watch(context.database), stopping)

    def events() -> Response:
        queries.check_names()
        return streams.open(request.environ.get(_CLIENT_GONE, lambda: False))

    gets: dict[str, Callable[..., Response]] = {
        **_asked(reads),
        "/events": events,
        "/manifests/<digest>": documents.manifest,
        "/blobs/<digest>": documents.blob,
        "/blobs/<digest>/transfers": documents.transfers,
        "/assignments/<kind>/<name>": documents.assignments,
        "/assignments/<kind>/<name>/<pipeline>": documents.assignment,
    }
    posts: dict[str, Callable[..., Response]] = {
        "/memberships": writes.membership,
        "/models": writes.model,
        "/releases": writes.release,
        "/environments": writes.environment,
        "/commands": writes.command,
    }
    for rule, view in gets.items():
        api.add_url_rule(rule, f"get {rule}".replace(".", " "), view, methods=["GET"])
    for rule, view in posts.items():
        api.add_url_rule(rule, f"post {rule}", view, methods=["POST"])
    api.add_url_rule("/blobs/<digest>", "put blob", writes.blob, methods=["PUT"])
    return api


def _asked(reads: Reads) -> dict[str, Callable[..., Response]]:
    """What people ask: each checks its parameters and makes one call."""

    def devices() -> Response:
        return answer(reads.devices(*queries.devices_page()))

    def compared(pipeline: str) -> Response:
        queries.check_names("from", "to")
        return answer(reads.compared(pipeline, queries.needed("from"), queries.needed("to")))

    def decisions() -> Response:
        queries.check_names("after", "limit")
        after = queries.number("after", default=None, least=0, most=2**53 - 1)
        limit = queries.number("limit", default=queries.DECISIONS_DEFAULT, least=1, most=queries.DECISIONS_MAX)
        return answer(reads.decisions(after, limit or queries.DECISIONS_DEFAULT))

    def of_pipeline(read: Callable[[str | None], Any]) -> Callable[[], Response]:
        def view() -> Response:
            queries.check_names("pipeline")
            return answer(read(queries.text("pipeline")))

        return view

    def plain(read: Callable[..., Any]) -> Callable[..., Response]:
        def view(**named: str) -> Response:
            queries.check_names()
            return answer(read(**named))

        return view

    return {
        "/status": plain(reads.status),
        "/fleet": plain(reads.fleet),
        "/devices": devices,
        "/devices/<device>": plain(reads.device),
        "/releases": of_pipeline(reads.releases),
        "/releases/<pipeline>/compare": compared,
        "/releases/<pipeline>/<version>": plain(reads.release),
        "/releases/<pipeline>/<version>/shadow": plain(reads.shadow),
        "/environments": plain(reads.environments),
        "/environments/<name>/<version>": plain(reads.environment),
        "/rollouts": of_pipeline(reads.rollouts),
        "/rollouts/<rollout>": plain(reads.rollout),
        "/rollbacks": plain(reads.rollbacks),
        "/rollbacks/<rollback>": plain(reads.rollback),
        "/decisions": decisions,
    }
