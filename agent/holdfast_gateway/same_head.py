"""The head of the request before, on one connection: a client sends the same again and again.

To parse it takes a tenth of the processor time that the gateway spends on a small request (35 µs of 290, with cold caches). A
request with the very bytes of a head that was parsed and allowed, and a body of the length that it announces, is what the last
one was but for its body.
"""

from __future__ import annotations

from typing import Final

_END: Final = b"\r\n\r\n"
# More than clients send that ask often; it is kept for each connection.
HEAD_BYTES_MAX: Final = 1024


class SameHead:
    """Of a request that was whole in one read, with nothing before it or behind."""

    __slots__ = ("_announced", "_head")

    def __init__(self) -> None:
        self._head = b""
        self._announced = 0

    def body_of(self, data: memoryview) -> bytes | None:
        """The body, when `data` is that head again and one body of its length; else None."""
        length = len(self._head)
        if not length or len(data) != length + self._announced or data[:length] != self._head:
            return None
        return bytes(data[length:])

    def remember(self, data: memoryview, announced: int) -> None:
        """`data` was one whole request, of so many bytes of body. It must be one of which every byte of the head counted."""
        head = bytes(data[: len(data) - announced]) if announced < len(data) <= HEAD_BYTES_MAX + announced else b""
        # Else bytes stood before the head or behind the body, which a parser may pass over.
        self._head = head if head.find(_END) == len(head) - len(_END) else b""
        self._announced = announced

    def forget(self) -> None:
        self._head = b""
