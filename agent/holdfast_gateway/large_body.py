"""The body of a large request, received where it will stay.

What goes through the parser is copied three times on its way, 64 KiB a turn of the loop: a millisecond for 600 kB. A body whose
length was announced need not: once its head is read, all that follows up to that length is body. Room is made as it comes, so
that whoever announces much and sends nothing holds little.
"""

from __future__ import annotations

from typing import Final

# Room grows by so many times: a body of 64 MB is moved three times, all in all a third of its bytes.
_GROWS: Final = 4


class LargeBody:
    """`room` is where to receive to; `filled` says how much came. `content` is the body once it is `whole`.

    `len` is what it holds of memory; where it is `full`, `grow` must be called before more comes.
    """

    __slots__ = ("_received", "_size_bytes", "_view", "content")

    def __init__(self, size_bytes: int, first_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._received = 0
        self.content = bytearray(min(size_bytes, first_bytes))
        self._view = memoryview(self.content)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def whole(self) -> bool:
        return self._received == self._size_bytes

    @property
    def full(self) -> bool:
        return self._received == len(self.content) < self._size_bytes

    @property
    def grows_bytes(self) -> int:
        """What the next `grow` takes besides."""
        return min(self._size_bytes, len(self.content) * _GROWS) - len(self.content)

    def grow(self) -> None:
        """Into a larger place: whoever received has a view of this one still."""
        larger = bytearray(len(self.content) + self.grows_bytes)
        larger[: self._received] = self._view[: self._received]
        self.content, self._view = larger, memoryview(larger)

    def room(self) -> memoryview:
        """Never beyond the body: what comes after it is another request."""
        return self._view[self._received :]

    def filled(self, count: int) -> None:
        self._received += count

    def take(self, part: bytes) -> None:
        """The beginning, which came together with the head. It must fit."""
        self._view[self._received : self._received + len(part)] = part
        self._received += len(part)
