"""Requests that a shadow has yet to be asked, with what the serving release answered: bounded, and the oldest goes first.

Nobody waits for a shadow, so it is never waited for: when it falls behind, it is asked a sample of the newest.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from holdfast_gateway.inference import Inference

# A minute of a camera at one frame a second. More would only be older.
QUEUED_MAX: Final = 64
# Of requests and answers together: a few photographs, or many rows. A small device has no more to spare for nobody.
QUEUED_BYTES_MAX: Final = 8 * 1024**2


class Nobody:
    """Who waits for a shadow's answer."""

    gone: Final = True
    ended: Final = True

    def answer(self, status: int, header_length: int, body: bytes | memoryview) -> None:
        """It never reaches anybody."""


_NOBODY: Final = Nobody()


class Shadowed(Inference):
    """A request that was answered, for a shadow to be asked; `answer` is what the application got."""

    __slots__ = ("answer", "answer_header_length", "serving_us")

    def __init__(self, asked: Inference, answer: bytes, answer_header_length: int, serving_us: int) -> None:
        super().__init__(
            _NOBODY,
            bytes(asked.body),
            version="",
            wants_binary=asked.wants_binary,
            header_length=asked.header_length,
            since=asked.since,
        )
        self.answer = answer
        self.answer_header_length = answer_header_length
        self.serving_us = serving_us

    @property
    def size_bytes(self) -> int:
        return len(self.body) + len(self.answer)


class ShadowQueue:
    """`put` says how many it had to drop for it."""

    __slots__ = ("_bytes", "_queue")

    def __init__(self) -> None:
        self._queue: deque[Shadowed] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, one: Shadowed) -> int:
        """Behind all others; one that is too large for the whole queue is dropped itself, and no other for it."""
        if one.size_bytes > QUEUED_BYTES_MAX:
            return 1
        self._queue.append(one)
        self._bytes += one.size_bytes
        dropped = 0
        while len(self._queue) > QUEUED_MAX or self._bytes > QUEUED_BYTES_MAX:
            self.pop()
            dropped += 1
        return dropped

    def pop(self) -> Shadowed:
        """The oldest."""
        one = self._queue.popleft()
        self._bytes -= one.size_bytes
        return one

    def clear(self) -> int:
        """Drop all; how many those were."""
        count = len(self._queue)
        self._queue.clear()
        self._bytes = 0
        return count
