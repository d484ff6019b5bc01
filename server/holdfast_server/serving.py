"""The web server: waitress, with the limits of bodies known before they are read, refusals in the API's form, and an orderly end.

waitress reads a whole body before the application is asked (into memory, or into a file in `tempfile`'s folder). So its parser
asks the limit of each address as soon as it has the headers; a larger body is passed over and never stored.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final, NamedTuple
from wsgiref.types import WSGIApplication

import msgspec
from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge

from holdfast_shared.errors import Malformed

# Each live page holds one (see api/events.py); the others are for questions, which take milliseconds.
THREADS: Final = 32
# Devices ask one after another and reuse their connections; a fleet that comes back at once waits in the backlog.
CONNECTIONS_MAX: Final = 1_000
IDLE_S: Final = 120
HEADER_BYTES_MAX: Final = 16 * 1024
# A refused body up to this is read and forgotten, so that its sender hears why; after more the connection is closed.
DISCARDED_BYTES_MAX: Final = 64 * 1024**2
# The application's limits count; this is only waitress' own, which knows one for all.
_NO_LIMIT: Final = 2**62
LOOK_S: Final = 0.5
DRAIN_S: Final = 5.0
_BAD_REQUEST: Final = 400

# Of a method and a path, how many bytes a body may have.
Limit = Callable[[str, str], int]


class Address(NamedTuple):
    """Where to listen; always on this machine alone, because nothing here is encrypted yet."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `127.0.0.1:8080`; port 0 is any free one. Raises Malformed: also for whatever is not loopback."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host == "localhost":
            host = "127.0.0.1"
        try:
            found = ipaddress.ip_address(host)
            number = int(port)
        except ValueError as error:
            raise Malformed(
                f"{text!r} is no address",
                field="--listen",
                next_step="write it like 127.0.0.1:8080; port 0 is a free one",
            ) from error
        if not found.is_loopback:
            raise Malformed(
                f"{host} can be reached from elsewhere, and nothing here is encrypted yet",
                field="--listen",
                next_step="listen on 127.0.0.1, and put a TLS proxy or an SSH tunnel before it",
            )
        if not 0 <= number <= 65_535:
            raise Malformed(f"{number} is no port", field="--listen", next_step="choose one from 0 (free) to 65535")
        return cls(host, number)

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


class WebServer:
    """Listens from the beginning; `serve` until told to stop."""

    def __init__(self, application: WSGIApplication, address: Address, limit: Limit) -> None:
        """Raises Malformed when the address cannot be had."""
        self._map: dict[int, Any] = {}
        self._waking, self._ended = threading.RLock(), False
        try:
            self._server = create_server(
                application,
                map=self._map,
                host=address.host,
                port=address.port,
                threads=THREADS,
                connection_limit=CONNECTIONS_MAX,
                channel_timeout=IDLE_S,
                channel_request_lookahead=1,  # it then sees that a client has left while we still answer
                max_request_header_size=HEADER_BYTES_MAX,
                max_request_body_size=_NO_LIMIT,
                ident="holdfast",
                expose_tracebacks=False,
            )
        except OSError as error:
            raise Malformed(
                f"cannot listen on {address.host}:{address.port}: {error.strerror}",
                field="--listen",
                next_step="stop what listens there, or choose another port; 0 is a free one",
            ) from error
        self._server.channel_class = _channel(limit)
        self.address = Address(address.host, int(self._server.effective_port))

    def serve(self, stop: threading.Event) -> None:
        """Until `stop`; then whatever is being answered is finished, within a deadline."""
        while not stop.is_set():
            wasyncore.loop(timeout=LOOK_S, map=self._map, count=1)
        wasyncore.dispatcher.close(self._server)  # takes no more connections
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and any(_is_busy(channel) for channel in list(self._map.values())):
            wasyncore.loop(timeout=0.05, map=self._map, count=1)
        self._server.task_dispatcher.shutdown(timeout=1)
        with self._waking:
            self._ended = True
            wasyncore.close_all(self._map, ignore_all=True)

    def wake(self) -> None:
        """Have `serve` look at `stop` now. From any thread or a signal's handler, and also when it has ended."""
        with self._waking:
            if not self._ended:  # its descriptor may be another file's by then
                self._server.pull_trigger()


def _is_busy(channel: Any) -> bool:
    return bool(getattr(channel, "requests", None) or getattr(channel, "total_outbufs_len", 0))


def _channel(limit: Limit) -> type[Any]:
    """waitress makes parsers by itself, so what ours needs is bound to their class."""

    class Parser(_Parser):
        limit_of = staticmethod(limit)

    class Channel(HTTPChannel):  # type: ignore[misc]  # waitress ships no types
        parser_class = Parser
        error_task_class = _Refusal

    return Channel


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress ships no types
    limit_of: Limit

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.chunked:  # nobody of ours sends such, and it does not say how much is to come
            self.body_rcv = ChunkedReceiver(_Nowhere())
        elif self.content_length > self.limit_of(self.command, self.path):
            self.headers["CONNECTION"] = "close"
            small = self.content_length <= DISCARDED_BYTES_MAX
            self.body_rcv = FixedStreamReceiver(self.content_length, _Nowhere()) if small else None

    def received(self, data: bytes) -> int:
        consumed = int(super().received(data))
        if self.chunked and self.body_bytes_received > DISCARDED_BYTES_MAX:
            self.error = RequestEntityTooLarge("the body is too large")
            self.completed = True
        return consumed


class _Nowhere:
    """A buffer that keeps nothing."""

    def append(self, data: bytes) -> None:
        """Forget it."""

    def __len__(self) -> int:
        return 0

    def getfile(self) -> BytesIO:
        return BytesIO()

    def close(self) -> None:
        """Nothing is held."""


class _Refusal(ErrorTask):  # type: ignore[misc]  # waitress ships no types
    """What waitress itself refuses, in the API's form."""

    def execute(self) -> None:
        error = self.request.error
        told = {
            "code": "too-large" if error.code != _BAD_REQUEST and error.code < 500 else "malformed",
            "field": "",
            "message": f"{error.reason}: {error.body}",
            "next": "send a whole HTTP/1.1 request",
        }
        body = msgspec.json.encode({"error": told})
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)
