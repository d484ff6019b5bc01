"""What was taken in and what was dropped, counted; and of each reason one line in a while, whoever sends how much."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Final

# A device that sends nonsense sends it every few seconds, and a fleet of them more: the count says it, not the lines.
LINE_EVERY_S: Final = 10.0
# The code of what a device said beyond its quota: the only one that is counted by device, which was verified before.
OVER_QUOTA: Final = "over-quota"
# Of presence, which nobody signs.
HINTS_OVER_QUOTA: Final = "presence-over-quota"
# The devices that are shown, with the most first.
FLOODING_SHOWN: Final = 5

log: Final = logging.getLogger(__name__)


class Tally:
    """Safe to share between threads. Reasons are codes of our errors: few."""

    __slots__ = ("_counts", "_flooding", "_lined", "_lock", "_silent")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._lined: dict[str, float] = {}
        self._silent: Counter[str] = Counter()
        self._flooding: Counter[str] = Counter()

    def count(self, what: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[what] += amount

    def dropped(self, code: str, *, source: str, why: str) -> None:
        """One message was not taken in. `source` and `why` come from outside, and are cut."""
        now = time.monotonic()
        with self._lock:
            self._counts[f"dropped {code}"] += 1
            if code == OVER_QUOTA:
                self._flooding[source] += 1
            if now - self._lined.get(code, now - LINE_EVERY_S) < LINE_EVERY_S:
                self._silent[code] += 1
                return
            self._lined[code] = now
            more = self._silent.pop(code, 0)
        log.warning(
            "dropped a message of %.80r (%s): %.300s%s", source, code, why, f" (and {more} more)" if more else ""
        )

    def flooding(self) -> dict[str, int]:
        """Of the devices that were over their quota most: how many messages of each were dropped."""
        with self._lock:
            return dict(self._flooding.most_common(FLOODING_SHOWN))

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
