"""A bandwidth cap as a token bucket, kept as the one moment at which the bytes so far are paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

SECOND_US: Final = 1_000_000
# What may come at once after a pause, in seconds of the cap: an evening of silence is no credit for a burst.
BURST_US: Final = SECOND_US // 2


@dataclass(frozen=True, slots=True)
class Pace:
    """`paid_us`: when all that came is paid for, on the clock that its caller reads."""

    bytes_per_s: int
    paid_us: int = 0

    def after(self, size_bytes: int, now_us: int) -> Pace:
        """With so many bytes that came just now."""
        began = max(self.paid_us, now_us - BURST_US)
        return replace(self, paid_us=began + size_bytes * SECOND_US // self.bytes_per_s)

    def wait_us(self, now_us: int) -> int:
        """How long nothing more may be read."""
        return max(0, self.paid_us - now_us)
