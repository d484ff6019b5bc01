"""How much one device may say: what it saved up, and then so much a minute. Pure: `now` is an argument.

A device that floods would keep everybody else waiting for verification and commits. What is over its quota is acknowledged all
the same: left unacknowledged, it would fill what the broker may send us, and starve the others by that. The broker had taken it
from the device already, so it does not come again: its counts of that time are missing, and silence passes nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# A device that was away for a week sends its whole spool at once: 10,000 reports as shipped, taken in within seconds.
SAVED_UP_MAX: Final = 12_000
# One health report a second, which is more than anybody should configure, and as many events.
PER_MINUTE: Final = 120
_MINUTE_S: Final = 60.0


class _Account(NamedTuple):
    left: float
    at_s: float


class Quota:
    """Of each device. Only what was verified is charged: nobody uses up what is another's."""

    __slots__ = ("_accounts", "_per_s", "_saved_up_max")

    def __init__(self, saved_up_max: int = SAVED_UP_MAX, per_minute: int = PER_MINUTE) -> None:
        self._saved_up_max, self._per_s = saved_up_max, per_minute / _MINUTE_S
        self._accounts: dict[str, _Account] = {}  # of enrolled devices alone

    def used_up(self, device: str, now_s: float) -> bool:
        return self._left(device, now_s) < 1

    def charge(self, device: str, now_s: float) -> None:
        """For one message that is the device's own."""
        self._accounts[device] = _Account(self._left(device, now_s) - 1, now_s)

    def _left(self, device: str, now_s: float) -> float:
        known = self._accounts.get(device)
        if known is None:
            return self._saved_up_max
        return min(self._saved_up_max, known.left + (now_s - known.at_s) * self._per_s)
