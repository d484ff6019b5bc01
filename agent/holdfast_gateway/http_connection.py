"""One HTTP/1.1 connection: requests read within limits and deadlines, answered one after the other, in the order they came.

- A request's size is refused before it is read, its slowness when its deadline passes, its grammar where it breaks.
- Pipelined requests wait; nothing more is read while one does, so what waits is bounded by one read.
- A refusal is answered before the connection ends, and what the peer still sends is read and thrown away for a moment:
  closing at once would take the answer from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Final

import httptools

from holdfast_gateway.admission import Admission, Service
from holdfast_gateway.frames import BUFFER_BYTES
from holdfast_gateway.http_limits import (
    HEADERS_BYTES_MAX,
    HEADERS_MAX,
    LIMIT_S,
    WRITE_S,
    Phase,
)
from holdfast_gateway.http_message import CONTINUE, Refusal, Request, head
from holdfast_gateway.inference import error_body
from holdfast_gateway.large_body import LargeBody
from holdfast_gateway.same_head import SameHead
from holdfast_worker.protocol import NO_HEADER

# What an announced body is given at once, of the largest allowed: a megabyte of the usual 64, which most large ones fit.
_FIRST_OF_LARGEST: Final = 64
_LENGTH_DIGITS_MAX: Final = 10
# Looked up many times for a request, which of an enum's members takes long.
_IDLE, _HEADERS, _BODY, _LINGER = Phase


class Connection(asyncio.BufferedProtocol):
    """Also the `Asker` of the one inference that it may have under way."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._same_head = SameHead()
        self._current: Request | Refusal | None = None
        self._queue: deque[Request | Refusal] = deque()
        self._phase = _IDLE
        self._since = self._service.now
        self._unsent = 0  # of an answer, when that was last looked at
        self._deaf = self._eof = self._continue_due = False
        self._held = 0
        self._serving = False
        self._message = 0
        self._begin()

    # -- the event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        match self._service.connected(self):
            case Admission.WELCOME:
                pass
            case Admission.TOO_MANY:
                message = "too many connections; close one, or raise [gateway] connections_max"
                self._refuse(HTTPStatus.TOO_MANY_REQUESTS, message)
            case Admission.FLOOD:
                transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._service.read_buffer if self._large is None else self._large.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._deaf:
            return
        if self._large is None:
            self._feed(self._service.read_buffer[:nbytes])
            return
        self._large.filled(nbytes)
        if self._large.full:
            if self._hold(self._large.grows_bytes):
                self._large.grow()
        elif self._large.whole:  # which the parser was not told
            keep_alive = self._parser.should_keep_alive()
            self._parser = httptools.HttpRequestParser(self)
            self._complete(self._large.content, keep_alive=keep_alive)
            self._pause_while_one_waits()

    def eof_received(self) -> bool:
        """A client may end its side and still wait for its answers."""
        self._eof = True
        if self._phase in (_HEADERS, _BODY) and not self._deaf:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request ended before it was whole")
        return self._current is not None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._deaf = True
        self._queue.clear()
        self._release()
        self._service.disconnected(self)

    # -- its deadlines

    def sweep(self, now: float) -> None:
        """Called now and then: end what is past its deadline."""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            if unsent != self._unsent:
                self._unsent, self._since = unsent, now
            elif now - self._since > WRITE_S:
                self._transport.abort()
        elif self._current is None and now - self._since > LIMIT_S[self._phase]:
            if self._phase in (_HEADERS, _BODY):
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request was not whole within {LIMIT_S[self._phase]:g} s")
            else:
                self._transport.abort()

    def stop(self) -> None:
        """Answer what is under way, then end; at once when nothing is."""
        if self._transport is not None and self._current is None:
            self._transport.close()

    @property
    def gone(self) -> bool:
        return self._transport is None

    @property
    def ended(self) -> bool:
        return self._eof or self._transport is None

    @property
    def busy(self) -> bool:
        """An answer is owed."""
        return self._current is not None

    # -- reading

    def _feed(self, data: memoryview) -> None:
        if self._phase is not _IDLE:
            self._parse(data)
        elif (body := self._same_head.body_of(data)) is None:
            self._enter(_HEADERS)
            self._parse(data)
            if self._phase is _IDLE and self._plain:
                self._same_head.remember(data, self._announced)
                return
        elif self._hold(len(body)):
            self._complete(body, keep_alive=True)
            self._pause_while_one_waits()
            return
        self._same_head.forget()

    def _parse(self, data: memoryview) -> None:
        message = self._message if self._phase is _HEADERS else 0
        while data and not self._deaf:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:  # it was offered, and is not taken up
                self._parser = httptools.HttpRequestParser(self)
                self._plain = False
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                if not self._deaf:
                    self._refuse(HTTPStatus.BAD_REQUEST, f"malformed HTTP: {error}")
            break
        if self._phase is _HEADERS and self._message == message and not self._deaf:
            self._dripped += len(data)
            if self._dripped > HEADERS_BYTES_MAX:
                self._refuse_headers()
        self._pause_while_one_waits()

    def _pause_while_one_waits(self) -> None:
        if self._queue and self._transport is not None:
            self._transport.pause_reading()

    def _begin(self) -> None:
        self._message += 1
        self._path = b""
        self._method = b""
        self._body: list[bytes] = []
        self._body_bytes = self._header_bytes = self._dripped = self._headers = self._announced = 0
        self._header_length = NO_HEADER
        self._wants_binary = self._expects = self._chunked = self._plain = False
        self._large: LargeBody | None = None
        self._encoding = b""
        self._fault = ""

    def on_message_begin(self) -> None:
        self._begin()
        self._phase = _HEADERS
        self._since = self._service.now

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _HEADERS:
            return  # a trailer
        self._headers += 1
        self._header_bytes += len(name) + len(value)
        match name.lower():
            case b"content-length":
                self._announced = int(value) if value.strip().isdigit() else 1
            case b"transfer-encoding":
                self._announced = max(self._announced, 1)
                self._chunked = True
            case b"inference-header-content-length":
                if self._header_length != NO_HEADER or not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
                    self._fault = "Inference-Header-Content-Length must be one decimal number of bytes"
                else:
                    self._header_length = int(value)
            case b"content-encoding":
                self._encoding = value.strip().lower()
            case b"accept":
                self._wants_binary = b"application/octet-stream" in value
            case b"expect":
                self._expects = value.strip().lower() == b"100-continue"
            case _:
                pass

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._method = self._parser.get_method()
        self._enter(_BODY)
        limit = self._service.body_bytes_max
        if self._headers > HEADERS_MAX or self._header_bytes > HEADERS_BYTES_MAX:
            self._refuse_headers()
        elif self._parser.should_upgrade() and (self._announced or self._method == b"CONNECT"):
            # Some clients offer HTTP/2 in every request. Without a body they are answered as if they had not.
            self._refuse(HTTPStatus.BAD_REQUEST, "this server speaks HTTP/1.1 and cannot upgrade; leave out `Upgrade`")
        elif self._announced > limit:
            self._refuse_size()
        elif self._encoding not in (b"", b"identity"):
            encoding = self._encoding.decode("latin-1")
            message = f"Content-Encoding {encoding} is not supported: send the body as it is"
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        elif self._fault:
            self._refuse(HTTPStatus.BAD_REQUEST, self._fault)
        elif self._expects and self._current is None and self._transport is not None:
            self._transport.write(CONTINUE)
        else:
            self._continue_due = self._expects
        self._prepare_for_large()

    def _prepare_for_large(self) -> None:
        if self._deaf or self._chunked or self._announced <= BUFFER_BYTES:
            return
        first = max(BUFFER_BYTES, self._service.body_bytes_max // _FIRST_OF_LARGEST)
        if self._hold(min(self._announced, first)):
            self._large = LargeBody(self._announced, first)

    def on_body(self, part: bytes) -> None:
        if self._deaf:
            return
        if self._large is not None:
            self._large.take(part)
            return
        if not self._hold(len(part)):
            return
        self._body.append(part)
        self._body_bytes += len(part)
        if self._body_bytes > self._service.body_bytes_max:
            self._refuse_size()

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        keep_alive = self._parser.should_keep_alive()
        self._plain = keep_alive and not self._chunked
        self._complete(body, keep_alive=keep_alive)

    def _complete(self, body: bytes | bytearray, *, keep_alive: bool) -> None:
        if self._header_length != NO_HEADER and self._header_length > len(body):
            message = f"Inference-Header-Content-Length is {self._header_length}, and the body has {len(body)} bytes"
            self._refuse(HTTPStatus.BAD_REQUEST, message)
            return
        request = Request(self._method, self._path, body, self._header_length, self._wants_binary, keep_alive)
        self._body, self._large = [], None
        self._continue_due = False  # it did not wait for that
        self._enter(_IDLE)
        self._take(request)

    def _hold(self, count: int) -> bool:
        if not self._service.hold(count):
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "too many bytes of requests are being held; ask again later")
            return False
        self._held += count
        return True

    def _refuse_headers(self) -> None:
        message = f"the headers are more than {HEADERS_MAX}, or larger than {HEADERS_BYTES_MAX} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _refuse_size(self) -> None:
        limit = self._service.body_bytes_max
        message = f"the body is larger than {limit} bytes ([gateway] body_bytes_max)"
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with this when what came before is answered, and read nothing more."""
        self._deaf = True
        self._body, self._large = [], None
        self._take(Refusal(status, message))

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self._service.now

    # -- answering

    def _take(self, what: Request | Refusal) -> None:
        if self._current is not None:
            self._queue.append(what)
            return
        self._current = what
        self._serve_current()

    def _serve_current(self) -> None:
        """In a loop and not by recursion: a hundred pipelined requests may each be answered at once."""
        if self._serving:
            return
        self._serving = True
        while (what := self._current) is not None:
            if isinstance(what, Refusal):
                self.answer(what.status, NO_HEADER, error_body(what.message))
            else:
                self._service.serve(what, self)
            if self._current is what:  # the answer comes later
                break
        self._serving = False

    def answer(
        self,
        status: int,
        header_length: int,
        body: bytes | memoryview,
        *,
        allow: bytes = b"",
        content_type: bytes = b"",
    ) -> None:
        what, transport = self._current, self._transport
        if transport is None or what is None:
            return
        closes = isinstance(what, Refusal) or not what.keep_alive or self._service.stopping
        closes = closes or (self._eof and not self._queue)
        start = head(status, header_length, len(body), closes=closes, allow=allow, content_type=content_type)
        if isinstance(what, Request) and what.method == b"HEAD":
            transport.write(start)
        elif len(body) <= BUFFER_BYTES:
            transport.write(b"".join((start, body)))
        else:
            transport.write(start)
            transport.write(body)
        self._current = None
        if closes:
            self._end(transport)
        else:
            self._next(transport)

    def _next(self, transport: asyncio.Transport) -> None:
        if self._queue:
            self._current = self._queue.popleft()
            self._serve_current()
            return
        self._release()
        self._since = self._service.now
        if self._continue_due:
            self._continue_due = False
            transport.write(CONTINUE)
        if not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def _end(self, transport: asyncio.Transport) -> None:
        """Nothing more is answered here."""
        self._deaf = True
        self._queue.clear()
        self._release()
        if self._eof or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._enter(_LINGER)
        if not transport.is_reading():
            transport.resume_reading()

    def _release(self) -> None:
        """Nothing of a body is needed any more, but what is being read."""
        reading = sum(map(len, self._body)) + len(self._large or b"") if not self._deaf else 0
        self._service.hold(reading - self._held)
        self._held = reading
