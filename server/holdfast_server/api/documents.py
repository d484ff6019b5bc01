"""What devices fetch: manifests and blobs by their digest, and assignments as the very bytes that go to MQTT.

Everything here is signed or named by its hash, so whoever stands between may at most withhold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec
from flask import Response, request
from sqlalchemy import Connection, select

from holdfast_server.api import queries, ranges
from holdfast_server.api.answers import JSON, answer, refusal
from holdfast_server.context import Context
from holdfast_server.registry import catalogue, transfers
from holdfast_server.store import outbox
from holdfast_server.store.schema import memberships
from holdfast_shared.errors import Missing
from holdfast_shared.identifiers import digest_of

PIECE_BYTES: Final = 256 * 1024
# Named by its hash: it can never be another.
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_ASK_AGAIN: Final = "no-cache"
_PARTIAL: Final = 206
_NOT_MODIFIED: Final = 304
_NOT_SATISFIABLE: Final = 416


class Documents:
    """One method for each address."""

    def __init__(self, context: Context) -> None:
        self._database = context.database
        self._blobs = context.registry.blobs

    def manifest(self, digest: str) -> Response:
        wanted = queries.digest(digest)
        with self._database.read() as connection:
            envelope = catalogue.envelope_of(connection, wanted)
        return _tagged(Response(envelope, mimetype=JSON), wanted, _FOR_EVER)

    def blob(self, digest: str) -> Response:
        wanted = queries.digest(digest)
        size_bytes = self._blobs.path_of(wanted).stat().st_size
        asked = request.headers.get("Range")
        if request.headers.get("If-Range", f'"{wanted}"') != f'"{wanted}"':
            asked = None
        try:
            span = ranges.parse(asked, size_bytes)
        except ranges.NotSatisfiable as error:
            response = refusal(error)
            response.status_code = _NOT_SATISFIABLE
            response.headers["Content-Range"] = f"bytes */{size_bytes}"
            return response
        whole = span is None
        span = span or ranges.Span(0, size_bytes - 1)
        response = Response(mimetype="application/octet-stream", status=200 if whole else _PARTIAL)
        if not whole:
            response.headers["Content-Range"] = f"bytes {span.first}-{span.last}/{size_bytes}"
        response.headers["Accept-Ranges"] = "bytes"
        response = _tagged(response, wanted, _FOR_EVER)
        if request.method != "HEAD" and response.status_code != _NOT_MODIFIED:
            stream = self._blobs.open(wanted)
            response.call_on_close(stream.close)
            response.response = _pieces(stream, span)
        if response.status_code != _NOT_MODIFIED:
            response.headers["Content-Length"] = str(span.size_bytes)
        return response

    def transfers(self, digest: str) -> Response:
        """Unsigned, and trusted only by what comes of it."""
        wanted = queries.digest(digest)
        self._blobs.path_of(wanted)
        with self._database.read() as connection:
            return answer(transfers.index_of(connection, self._blobs, wanted))

    def assignments(self, kind: str, name: str) -> Response:
        """Which documents there are for a region or a device."""
        with self._database.read() as connection:
            scope = _scope(connection, kind, name)
            stored = outbox.stored_documents(connection, scope)
        body = {"pipelines": {one.pipeline: one.payload_digest for one in stored}}
        return _tagged(answer(body), digest_of(msgspec.json.encode(body)), _ASK_AGAIN)

    def assignment(self, kind: str, name: str, pipeline: str) -> Response:
        queries.name(pipeline, "pipeline")
        with self._database.read() as connection:
            scope = _scope(connection, kind, name)
            found = [one for one in outbox.stored_documents(connection, scope) if one.pipeline == pipeline]
        if not found:
            raise Missing(
                f"nothing is assigned to {scope} for the pipeline {pipeline}",
                field="pipeline",
                next_step="roll a release of it out first: holdfast rollout plan",
            )
        return _tagged(Response(found[0].envelope, mimetype=JSON), found[0].payload_digest, _ASK_AGAIN)


def _scope(connection: Connection, kind: str, name: str) -> str:
    """Its key. Raises Malformed, or Missing for a region or device that nobody was enrolled in or as."""
    if kind == "device":
        known = memberships.c.device == queries.device(name)
    elif kind == "region":
        known = memberships.c.region == queries.name(name, "region")
    else:
        raise Missing(f"there is no scope {kind[:64]!r}", field="scope", next_step="use region or device")
    if connection.execute(select(memberships.c.device).where(known).limit(1)).first() is None:
        raise Missing(
            f"no device is enrolled {'as' if kind == 'device' else 'in'} {name}",
            field=kind,
            next_step="enrol it first: holdfast device enrol",
        )
    return f"{kind}/{name}"


def _tagged(response: Response, etag: str, cache: str) -> Response:
    """With its entity tag; or, if the asker has that already, only that."""
    response.headers["Cache-Control"] = cache
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(etag)
    if request.if_none_match.contains(etag):
        response.status_code = _NOT_MODIFIED
        response.response = ()
        for name in ("Content-Length", "Content-Range", "Content-Type"):
            response.headers.pop(name, None)
    return response


def _pieces(stream: BinaryIO, span: ranges.Span) -> Iterator[bytes]:
    stream.seek(span.first)
    left = span.size_bytes
    while left and (piece := stream.read(min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
