"""Our end of a worker's socket, on the event loop: what is written leaves at once, or as soon as the worker takes it.

asyncio's own transport, in CPython 3.11, copies what the socket does not take at once, and again at each further attempt; and
it calls through four functions for each answer. This asks the socket for a larger buffer, and keeps views.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Final, Protocol

# A large tensor in one piece, where the system allows so much (net.core.wmem_max); what it does not allow takes more turns.
SEND_BUFFER_BYTES: Final = 1024**2


class Owner(Protocol):
    """Who reads. Called from the event loop."""

    def room(self) -> memoryview:
        """Where to receive to; not empty."""

    def filled(self, count: int) -> None:
        """So many bytes came there."""

    def hung_up(self) -> None:
        """Once, and last: the peer is gone, or `close` was called."""


class StreamEnd:
    """What was given to `write` must not change while it may be unsent."""

    __slots__ = ("_loop", "_owner", "_socket", "_unsent")

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._socket: socket.socket | None = connection
        self._unsent: deque[memoryview] = deque()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        loop.add_reader(connection.fileno(), self._readable)

    def write(self, *parts: bytes | bytearray) -> None:
        """All parts, in their order. A peer that is gone is told by `hung_up`, never by an exception."""
        if self._socket is None:
            return
        sent = 0 if self._unsent else self._send(parts)
        if sent == sum(map(len, parts)):
            return
        if not self._unsent:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        for part in parts:
            if sent < len(part):
                self._unsent.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def close(self) -> None:
        """Now, whatever is unsent. May be repeated."""
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._unsent.clear()
        self._loop.call_soon(self._owner.hung_up)

    def _send(self, parts: tuple[bytes | bytearray, ...]) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # it is gone, which reading will tell in the loop's next turn
            return 0

    def _writable(self) -> None:
        while self._unsent and self._socket is not None:
            first = self._unsent[0]
            try:
                sent = self._socket.send(first)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            if sent < len(first):
                self._unsent[0] = first[sent:]
                return
            self._unsent.popleft()
        if self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            count = self._socket.recv_into(self._owner.room())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count:
            self._owner.filled(count)
        else:
            self.close()
