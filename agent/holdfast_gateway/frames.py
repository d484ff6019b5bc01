"""Cuts the byte stream of a worker into frames, without a copy: `received` sees each frame where it lies.

A small frame is good only during the call. One larger than BUFFER_BYTES lies in a buffer of its own that is never written
again, so it may be kept and sent as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast_worker.protocol import FRAME_BYTES_MAX, LENGTH

# Several small answers fit one read.
BUFFER_BYTES: Final = 64 * 1024


class LostPlace(Exception):
    """A length that no frame has: the peer is no worker, or its memory is damaged. Nothing after it can be read."""


class Frames:
    """`room` is where to read into; `filled` says how much came, and hands over every frame that is whole."""

    __slots__ = ("_buffer", "_end", "_received", "_start")

    def __init__(self, received: Callable[[memoryview], None]) -> None:
        self._received = received
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0

    def room(self) -> memoryview:
        return self._buffer[self._end :]

    def filled(self, count: int) -> None:
        """Raises LostPlace, and whatever `received` raises."""
        self._end += count
        wanted = LENGTH.size
        while self._end - self._start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer, self._start)
            if not 0 < length <= FRAME_BYTES_MAX:
                raise LostPlace(f"a frame of {length} bytes")
            wanted = LENGTH.size + length
            if self._end - self._start < wanted:
                break
            begin, self._start = self._start, self._start + wanted
            self._received(self._buffer[begin : self._start])
            wanted = LENGTH.size
        self._make_room(wanted)

    def _make_room(self, wanted: int) -> None:
        """For a frame of `wanted` bytes, of which the first are here already."""
        left = self._end - self._start
        if wanted > BUFFER_BYTES:
            if len(self._buffer) == wanted:
                return
            larger = memoryview(bytearray(wanted))
        elif len(self._buffer) != BUFFER_BYTES:
            larger = memoryview(bytearray(BUFFER_BYTES))
        elif left == 0:
            self._start = self._end = 0
            return
        elif self._start + wanted <= BUFFER_BYTES and self._end < BUFFER_BYTES:
            return
        else:
            larger = self._buffer
        larger[:left] = self._buffer[self._start : self._end]  # the two may overlap: this moves, as memmove does
        self._buffer, self._start, self._end = larger, 0, left
