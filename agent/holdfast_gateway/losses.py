"""When a lost worker is started again, and when it has been lost too often. Pure: `now` is an argument.

A loss is charged to its slot once it is known that the request which was being answered is not to blame; a request that
kills the workers of both slots is pardoned, so that one application cannot have two good releases given up. Starts are
spaced all the same.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

from holdfast_shared.failure_codes import FailureCode

# The fourth loss within a minute is a loop: three may be one bad minute of the device, such as a shortage of memory.
LOSSES_MAX: Final = 4
LOSS_WINDOW_S: Final = 60.0
# Loads that each take their whole deadline never lie within one window; so many in a row, and none was a bad minute.
LATE_MAX: Final = 4
# A shadow runs at the lowest priority, beside what serves, and is slower by no fault of its own: it has so many times the
# release's deadlines. The agent waits as long for its self-test.
SHADOW_PATIENCE: Final = 4
# The first restart comes at once; later ones wait 0.1 s, 0.2 s, … for as long as starts lie within the window.
BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0


class Loss(StrEnum):
    """How a worker was lost, told apart because they are mended differently."""

    CRASH = FailureCode.CRASH_LOOP
    HANG = FailureCode.HANG_LOOP
    LOAD = FailureCode.LOAD_FAILED
    LATE = FailureCode.LOAD_DEADLINE
    UNSTARTED = FailureCode.UNREADABLE  # the system gave it no process or no socket, which no release is to blame for


class Losses:
    """Of one slot: `total` are the charged ones since it was loaded, `recent` those within the window."""

    __slots__ = ("_charged", "_late", "_starts", "total")

    def __init__(self) -> None:
        self._charged: deque[tuple[float, Loss]] = deque(maxlen=LOSSES_MAX)
        self._starts: deque[float] = deque(maxlen=16)
        self._late = 0
        self.total = 0

    def ready(self) -> None:
        """It loaded in time after all."""
        self._late = 0

    def started(self, now: float) -> None:
        self._starts.append(now)

    def restart_delay_s(self, now: float) -> float:
        """How long to wait before the next start."""
        recent = sum(1 for at in self._starts if now - at < LOSS_WINDOW_S)
        return 0.0 if recent <= 1 else min(BACKOFF_BASE_S * 2.0 ** (recent - 2), BACKOFF_MAX_S)

    def charge(self, loss: Loss, now: float) -> str:
        """Count it; the failure code when it was lost too often, else empty. The last loss names the loop."""
        self.total += 1
        self._late = self._late + 1 if loss is Loss.LATE else 0
        self._charged.append((now, loss))
        recent = [kind for at, kind in self._charged if now - at < LOSS_WINDOW_S]
        return str(loss) if len(recent) >= LOSSES_MAX or self._late >= LATE_MAX else ""
