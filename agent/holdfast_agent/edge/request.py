"""One GET to the server within limits: no redirect, no retry, no decoding; a deadline for all of it and one for each silence.

The standard library's client, not a pool: a device asks rarely, so a kept connection would only hold a place at the server, and a
watchdog can close this one's socket while it trickles headers, which no timeout per read ever ends.
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from holdfast_shared.errors import HoldfastError
from holdfast_shared.failure_codes import FailureCode

CONNECT_S: Final = 10.0
SILENCE_S: Final = 15.0
# A server may ask us to stay away for so long; more is a mistake or malice.
RETRY_AFTER_S_MAX: Final = 86_400.0
_PIECE_BYTES: Final = 64 * 1024


class Unreachable(HoldfastError):
    """No answer, or one that broke off. Nobody need act: it is tried again."""

    code = FailureCode.FETCH_UNREACHABLE


class TooSlow(HoldfastError):
    """An answer that takes longer than it may."""

    code = FailureCode.FETCH_TOO_SLOW


class TooLong(HoldfastError):
    """A body that is longer than it may be."""

    code = FailureCode.FETCH_DAMAGED


class Answer:
    """`status` and headers are there; the body comes piece by piece."""

    __slots__ = ("_passed", "_response", "_watchdog", "retry_after_s", "status")

    def __init__(self, response: HTTPResponse, watchdog: _Watchdog, passed: Callable[[int], None]) -> None:
        self._response, self._watchdog, self._passed = response, watchdog, passed
        self.status = response.status
        self.retry_after_s = _retry_after(response.getheader("Retry-After"))

    def header(self, name: str) -> str:
        """The header's value, or empty."""
        return self._response.getheader(name) or ""

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, to its end or its breaking off: whoever reads it knows how long it should be."""
        while piece := self._read():
            yield piece
            self._passed(len(piece))

    def body(self, size_bytes_max: int) -> bytes:
        """All of it. Raises TooLong past the limit."""
        read = bytearray()
        for piece in self.pieces():
            read += piece
            if len(read) > size_bytes_max:
                raise TooLong(f"the body is longer than {size_bytes_max} bytes", next_step="look at what answers there")
        declared = self.header("Content-Length")
        if declared.isdecimal() and int(declared) != len(read):
            raise Unreachable(f"the body broke off after {len(read)} of {declared} bytes")
        return bytes(read)

    def _read(self) -> bytes:
        with self._watchdog.translated():
            return self._response.read1(_PIECE_BYTES)


@contextlib.contextmanager
def get(
    base: str,
    path: str,
    *,
    deadline_s: float,
    headers: Mapping[str, str] | None = None,
    passed: Callable[[int], None] = lambda _: None,
    receive_buffer_bytes: int | None = None,
) -> Iterator[Answer]:
    """GET `base` + `path`; what its status means is the caller's. Raises Unreachable or TooSlow, while the body is read also.

    `passed` is called with the length of each piece of the body once it was taken; it may wait, or raise.
    """
    watchdog = _Watchdog(deadline_s, f"{base}{path}")
    connection = _connection(base)
    try:
        with watchdog.translated():
            connection.connect()
            connection.sock.settimeout(SILENCE_S)
            if receive_buffer_bytes is not None:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            watchdog.watch(connection.sock)
            connection.request("GET", path, headers={"Accept-Encoding": "identity", **(headers or {})})
            response = connection.getresponse()
        with contextlib.closing(response):
            yield Answer(response, watchdog, passed)
    finally:
        watchdog.end()
        connection.close()


class _Watchdog:
    """Shuts the socket when time is up: whoever reads from it then wakes, and learns why."""

    def __init__(self, deadline_s: float, what: str) -> None:
        self._what, self._deadline_s = what, deadline_s
        self._expired = False
        self._timer = threading.Timer(max(0.0, deadline_s), self._expire)
        self._timer.daemon = True
        self._socket: socket.socket | None = None

    def watch(self, watched: socket.socket) -> None:
        self._socket = watched
        self._timer.start()

    def end(self) -> None:
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """What goes wrong inside, as one of our errors."""
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            if self._expired:
                raise self._too_slow() from error
            if isinstance(error, TimeoutError) and self._socket is not None:
                raise TooSlow(f"{self._what}: silent for {SILENCE_S:g} s") from error
            raise Unreachable(f"{self._what}: {type(error).__name__}: {str(error)[:200]}") from error
        if self._expired:
            raise self._too_slow()

    def _too_slow(self) -> TooSlow:
        return TooSlow(f"{self._what}: not done within {self._deadline_s:.0f} s")

    def _expire(self) -> None:
        self._expired = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _connection(base: str) -> HTTPConnection:
    parts = urlsplit(base)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=CONNECT_S)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None for what is neither."""
    if not value:
        return None
    if value.isdecimal():
        seconds = float(value[:12])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX) if math.isfinite(seconds) else None
