"""The worker's end of its socket: whole frames in through one reused buffer, one write out per answer.

Blocking on purpose: a worker does one thing at a time, and an event loop would double the cost of a small request.

Under a client that asks again and again, half of what a small request takes goes into waking processes that had just gone to
sleep, above all where a core is a virtual machine's. So a worker that was asked again soon looks for the next request for a
moment before it sleeps. What comes at longer intervals finds it asleep, and costs no look.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import Final

from holdfast_worker.protocol import FRAME_BYTES_MAX, LENGTH

# Holds several small requests, or most images. It grows to the largest frame, and shrinks again after one beyond KEPT.
_BUFFER_BYTES: Final = 64 * 1024
_BUFFER_BYTES_KEPT: Final = 16 * 1024**2
_LEAVING_STACK_BYTES: Final = 256 * 1024
# As long as what comes counts as soon, and as long as is looked for it: a few times the way to a client and back.
LOOK_S: Final = 0.0003


class LostPlace(Exception):
    """The peer's bytes are no frames of ours: two versions that should not have met."""


class Channel:
    """Frames over a connected stream socket."""

    __slots__ = ("_arrivals", "_buffer", "_end", "_looks", "_socket", "_soon", "_start", "_view")

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._arrivals = select.poll()
        self._arrivals.register(connection.fileno(), select.POLLIN)
        self._looks = False
        self._soon = False  # the last that came was not waited for long
        self._replace_buffer(_BUFFER_BYTES)
        self._start = 0  # what has come and was not handed out lies from here
        self._end = 0  # up to here

    def receive(self) -> memoryview | None:
        """The next whole frame, its length included, valid until the next call; None when the peer is gone."""
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_BYTES_KEPT:
                self._replace_buffer(_BUFFER_BYTES)
        if not self._hold(LENGTH.size):
            return None
        (length,) = LENGTH.unpack_from(self._buffer, self._start)
        if not 1 <= length <= FRAME_BYTES_MAX:
            raise LostPlace(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed")
        if not self._hold(LENGTH.size + length):
            return None
        frame = self._view[self._start : self._start + LENGTH.size + length]
        self._start += len(frame)
        return frame

    def look_before_sleeping(self) -> None:
        """From now on, where there is more than one core: the peer would wait for the one that is looked with."""
        self._looks = len(os.sched_getaffinity(0)) > 1

    def send(self, *parts: bytes | memoryview) -> None:
        """All parts, in one system call unless the socket's buffer is full. Raises OSError when the peer is gone."""
        sent = self._socket.sendmsg(parts)
        if sent != sum(map(len, parts)):
            self._send_rest(parts, sent)

    def _send_rest(self, parts: tuple[bytes | memoryview, ...], sent: int) -> None:
        for part in parts:
            if sent < len(part):
                self._socket.sendall(memoryview(part)[sent:])
                sent = 0
            else:
                sent -= len(part)

    def _hold(self, needed: int) -> bool:
        """Receive until `needed` bytes lie in the buffer from `_start` on; False at the end of the stream."""
        if self._end - self._start >= needed:
            return True
        if self._start + needed > len(self._buffer):
            self._make_room(needed)
        while self._end - self._start < needed:
            count = self._receive_into(self._view[self._end :])
            if count == 0:
                return False
            self._end += count
        return True

    def _receive_into(self, room: memoryview) -> int:
        if not self._looks or self._start != self._end:  # the rest of a frame is on its way
            return self._socket.recv_into(room)
        began = time.perf_counter()
        while self._soon and not self._arrivals.poll(0) and time.perf_counter() - began < LOOK_S:
            os.sched_yield()
        count = self._socket.recv_into(room)
        self._soon = time.perf_counter() - began < LOOK_S
        return count

    def _make_room(self, needed: int) -> None:
        """Move what lies in the buffer to its front, or to a larger one. Frames handed out before may be gone then."""
        lying = bytes(self._view[self._start : self._end])
        if needed > len(self._buffer):
            self._replace_buffer(needed)
        self._view[: len(lying)] = lying
        self._start, self._end = 0, len(lying)

    def _replace_buffer(self, size: int) -> None:
        # A new one, never resized: arrays may still look into the old one.
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)


def exit_when_peer_is_gone(connection: socket.socket) -> None:
    """End this process at once when the peer closes, even in the middle of a model that never returns.

    A thread that asks for nothing but the hang-up sleeps through all traffic. Without it, a gateway that is killed would leave
    a hung model behind, holding its memory. (Linux' parent-death signal is bound to a thread of the parent: not used.)
    """

    def wait() -> None:
        poller = select.poll()
        poller.register(connection.fileno(), 0)  # POLLHUP and POLLERR are always told
        poller.poll()
        os._exit(0)

    before = threading.stack_size(_LEAVING_STACK_BYTES)
    try:
        threading.Thread(target=wait, name="exit-when-peer-is-gone", daemon=True).start()
    finally:
        threading.stack_size(before)
