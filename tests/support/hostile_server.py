"""An HTTP server on loopback that behaves as its test says: honestly, or it cuts, lies, trickles, redirects and never ends."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

REQUEST_BYTES_MAX: Final = 64 * 1024


class Request(NamedTuple):
    path: str
    headers: dict[str, str]


class Turn(NamedTuple):
    """One request to be answered. `wait` is a pause that ends early when the server closes."""

    request: Request
    send: Callable[[bytes], None]
    wait: Callable[[float], bool]


Behaviour = Callable[[Turn], None]


class HostileServer:
    """`on` says how a path is answered: the behaviours in turn, the last one for ever. Unknown paths answer 404."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []
        self._behaviours: dict[str, list[Behaviour]] = defaultdict(lambda: [status(404)])
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def on(self, path: str, *behaviours: Behaviour) -> None:
        self._behaviours[path] = list(behaviours)

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def close(self) -> None:
        """Answer nobody any more. May be repeated."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            request = _read(connection)
            if request is None:
                return
            self.requests.append(request)
            behaviours = self._behaviours[request.path]
            behave = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
            behave(Turn(request, connection.sendall, self._closing.wait))


@contextlib.contextmanager
def running_hostile_server() -> Iterator[HostileServer]:
    server = HostileServer()
    try:
        yield server
    finally:
        server.close()


def _read(connection: socket.socket) -> Request | None:
    """None from a client that was killed before it had asked."""
    raw = b""
    while b"\r\n\r\n" not in raw and len(raw) < REQUEST_BYTES_MAX:
        piece = connection.recv(4096)
        if not piece:
            return None
        raw += piece
    first, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines if line)
    return Request(first.split(" ")[1], {name.lower(): value for name, _, value in pairs})


def head(code: int, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode()


def status(code: int, body: bytes = b"", **headers: object) -> Behaviour:
    return lambda turn: turn.send(head(code, Content_Length=len(body), **headers) + body)


def honest(body: bytes, etag: str = '"1"') -> Behaviour:
    """Ranges, ETags, If-None-Match and If-Range as RFC 9110 has them."""

    def behave(turn: Turn) -> None:
        wanted = turn.request.headers
        if wanted.get("if-none-match") == etag:
            turn.send(head(304, ETag=etag))
            return
        found = re.fullmatch(r"bytes=(\d+)-", wanted.get("range", ""))
        start = int(found[1]) if found and wanted.get("if-range", etag) == etag else 0
        if start >= len(body) > 0:
            turn.send(head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0))
        elif start:
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            turn.send(head(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag) + body[start:])
        else:
            turn.send(head(200, Content_Length=len(body), ETag=etag, Accept_Ranges="bytes") + body)

    return behave


def cut(body: bytes, after: int, etag: str = '"1"') -> Behaviour:
    """Honest headers; then the connection ends after so many bytes of the body."""

    def behave(turn: Turn) -> None:
        whole: list[bytes] = []
        honest(body, etag)(turn._replace(send=whole.append))
        headers, _, content = b"".join(whole).partition(b"\r\n\r\n")
        turn.send(headers + b"\r\n\r\n" + content[:after])

    return behave


def trickle(content: bytes, every_s: float, piece: int = 1) -> Behaviour:
    """These bytes, headers and all, a few at a time."""

    def behave(turn: Turn) -> None:
        for start in range(0, len(content), piece):
            turn.send(content[start : start + piece])
            if turn.wait(every_s):
                return

    return behave


def endless(turn: Turn) -> None:
    """A body without a length and without an end."""
    turn.send(head(200))
    while not turn.wait(0):
        turn.send(b"\0" * 65536)


def hang_up(turn: Turn) -> None:
    """Reads the request, and closes."""


def silent(turn: Turn) -> None:
    """Accepts, and says nothing."""
    turn.wait(60)
