"""The body of a large request, received where it will stay.

What goes through the parser is copied three times on its way, 64 KiB a turn of the loop: a millisecond for 600 kB. A body whose
length was announced need not: once its head is read, all that follows up to that length is body.
"""

from __future__ import annotations


class LargeBody:
    """`room` is where to receive to; `filled` says how much came. `content` is the body once it is `whole`."""

    __slots__ = ("_received", "_view", "content")

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self._view = memoryview(self.content)
        self._received = 0

    def __len__(self) -> int:
        return len(self.content)

    @property
    def whole(self) -> bool:
        return self._received == len(self.content)

    def room(self) -> memoryview:
        """Never beyond the body: what comes after it is another request."""
        return self._view[self._received :]

    def filled(self, count: int) -> None:
        self._received += count

    def take(self, part: bytes) -> None:
        """The beginning, which came together with the head."""
        self._view[self._received : self._received + len(part)] = part
        self._received += len(part)
