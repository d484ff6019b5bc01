"""How long a fetch may take: a deadline for all of it, and a floor under the speed of a body."""

from __future__ import annotations

import time
from typing import Final

from holdfast_agent.edge.request import TooSlow

# A body slower than this is no download but a held connection. 2G at its worst is ten times as fast.
BYTES_PER_S_MIN: Final = 1024
FLOOR_WINDOW_S: Final = 20.0


class Deadline:
    """A moment on the monotonic clock."""

    __slots__ = ("_at", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds, self._at = seconds, time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until then. Raises TooSlow when there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TooSlow(f"not done within {self._seconds:g} s", next_step="it goes on from there the next time")
        return left


class Floor:
    """Counts the bytes of one body."""

    __slots__ = ("_bytes", "_since")

    def __init__(self) -> None:
        self._since, self._bytes = time.monotonic(), 0

    def count(self, size_bytes: int) -> None:
        """Raises TooSlow when the last FLOOR_WINDOW_S brought less than BYTES_PER_S_MIN."""
        self._bytes += size_bytes
        elapsed = time.monotonic() - self._since
        if elapsed < FLOOR_WINDOW_S:
            return
        if self._bytes < BYTES_PER_S_MIN * elapsed:
            raise TooSlow(f"{self._bytes} bytes in {elapsed:.0f} s; at least {BYTES_PER_S_MIN} a second are expected")
        self._since, self._bytes = time.monotonic(), 0
