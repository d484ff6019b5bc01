"""What changes something: each is a signed document, or a blob that a signed document asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flask import Response, request

from holdfast_server import command_door, membership
from holdfast_server.api import queries
from holdfast_server.api.answers import answer
from holdfast_server.api.body_limits import BodyLimits
from holdfast_server.context import Context
from holdfast_server.refusals import TooLarge
from holdfast_server.registry.registry import Published
from holdfast_shared.errors import Malformed

PIECE_BYTES: Final = 1024 * 1024
_STATUS: Final = {"unchanged": 200, "made": 201, "missing": 202}


class Writes:
    """One method for each address."""

    def __init__(self, context: Context, limits: BodyLimits) -> None:
        self._context = context
        self._limits = limits

    def membership(self) -> Response:
        stands, changed = membership.enrol(self._context, self._document())
        return answer(stands, 201 if changed else 200)

    def model(self) -> Response:
        return _published(self._context.registry.publish_model(self._document()))

    def release(self) -> Response:
        return _published(self._context.registry.publish_release(self._document()))

    def environment(self) -> Response:
        return _published(self._context.registry.publish_environment(self._document()))

    def command(self) -> Response:
        return answer(command_door.accept(self._context, self._document()))

    def blob(self, digest: str) -> Response:
        wanted = queries.digest(digest)
        length = request.content_length
        made = self._context.registry.receive(wanted, length, _pieces())
        return answer({"digest": wanted}, 201 if made else 200)

    def _document(self) -> bytes:
        """The body, if it is not too large: that is asked before it is read."""
        limit = self._limits.of(request.method, request.path)
        length = request.content_length or 0
        if length > limit:
            raise TooLarge(
                f"the body has {length} bytes; at most {limit} are allowed here",
                field="body",
                next_step="send one signed document",
            )
        if not length:
            raise Malformed(
                "the body is empty, or came without its length",
                field="body",
                next_step="send one signed document, with a Content-Length",
            )
        return request.get_data(cache=False)


def _published(published: Published) -> Response:
    missing = [{"digest": digest, "size_bytes": size} for digest, size in sorted(published.missing.items())]
    return answer(
        {"result": published.result, "digest": published.digest, "missing": missing}, _STATUS[published.result]
    )


def _pieces() -> Iterator[bytes]:
    while piece := request.stream.read(PIECE_BYTES):
        yield piece
