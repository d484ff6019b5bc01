"""HTTP/1.1 messages as values: a request that came whole, a reply, and the bytes of a reply."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

from holdfast_worker.protocol import NO_HEADER

_JSON: Final = b"Content-Type: application/json\r\n"
_BINARY: Final = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_RETRY: Final = b"Retry-After: 1\r\n"
_LATER: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Request(NamedTuple):
    """`header_length` is `Inference-Header-Content-Length`, or NO_HEADER."""

    method: bytes
    path: bytes
    body: bytes | bytearray
    header_length: int
    wants_binary: bool
    keep_alive: bool


class Refusal(NamedTuple):
    """What came is no request that can be answered; the connection ends with this."""

    status: HTTPStatus
    message: str


@lru_cache(maxsize=256)  # answers of one release are nearly all as long as one another
def head(
    status: int, header_length: int, body_bytes: int, *, closes: bool, allow: bytes = b"", content_type: bytes = b""
) -> bytes:
    """Status line and headers. A body with a `header_length` is binary, else it is JSON, unless `content_type` says what."""
    kind = _JSON if header_length == NO_HEADER else _BINARY % header_length
    if content_type:
        kind = b"Content-Type: %s\r\n" % content_type
    return b"%s%sContent-Length: %d\r\n%s%s\r\n" % (
        _first(status),
        kind,
        body_bytes,
        _CLOSE if closes else b"",
        b"Allow: " + allow + b"\r\n" if allow else b"",
    )


@lru_cache(maxsize=64)
def _first(status: int) -> bytes:
    known = HTTPStatus(status)
    return b"HTTP/1.1 %d %s\r\n%s" % (status, known.phrase.encode(), _RETRY if known in _LATER else b"")
