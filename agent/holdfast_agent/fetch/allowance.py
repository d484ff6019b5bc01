"""The bytes that a fetch may still take from a metered network today, kept on disk over restarts.

They are set aside before they come, in portions: whoever is killed has counted too much rather than too little. Whether the
network is metered is looked up at each portion, as it may change in the middle of a download.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import tzinfo
from pathlib import Path
from typing import Final

from holdfast_agent.core import budget
from holdfast_agent.core.budget import NOTHING_SPENT, Spent
from holdfast_agent.edge.configuration import Network
from holdfast_agent.fetch.outcome import Failed
from holdfast_shared import durable, strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.failure_codes import FailureCode

# One small durable write for each.
PORTION_BYTES: Final = 512 * 1024
# A request and the headers of its answer, both ways.
REQUEST_BYTES: Final = 1024
_FILE_BYTES_MAX: Final = 4096
_WORD_BYTES_MAX: Final = 64

log: Final = logging.getLogger(__name__)


class Allowance:
    """A Restraint. One process at a time, the one that holds the fetch lock; `settle` at the end."""

    def __init__(
        self, file: Path, network: Network, zone: tzinfo, *, urgent: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._file, self._network, self._zone, self._clock = file, network, zone, clock
        self._may_exceed = urgent and network.urgent_may_exceed
        self._set_aside = 0

    def begin(self) -> None:
        """Raises Failed `over-budget`, before anything is sent."""
        if not self._may_exceed and not self._set_aside and self._metered() and not self._unspent():
            raise self._over()
        self.passed(REQUEST_BYTES)

    def passed(self, size_bytes: int) -> None:
        """Raises Failed `over-budget` once the day's bytes are used up; what came is counted."""
        if self._set_aside >= size_bytes:
            self._set_aside -= size_bytes
            return
        if not self._metered():
            return
        needed, unspent = size_bytes - self._set_aside, self._unspent()
        portion = max(needed, PORTION_BYTES if self._may_exceed else min(unspent, PORTION_BYTES))
        self._write(budget.with_more(self._spent(), portion))
        self._set_aside = portion - needed
        if needed > unspent and not self._may_exceed:
            raise self._over()

    def settle(self) -> None:
        """Give back what was set aside and not needed."""
        if self._set_aside:
            self._write(budget.with_more(self._spent(), -self._set_aside))
            self._set_aside = 0

    def _unspent(self) -> int:
        return budget.left_bytes(self._spent(), self._network.metered_bytes_per_day)

    def _metered(self) -> bool:
        return is_metered(self._network.metered)

    def _spent(self) -> Spent:
        day = budget.day_of(int(self._clock() * budget.SECOND_US), self._zone)
        try:
            raw = self._file.read_bytes()[: _FILE_BYTES_MAX + 1]
            spent = strict_json.decode(raw, Spent, what=str(self._file), size_bytes_max=_FILE_BYTES_MAX)
        except FileNotFoundError:
            spent = NOTHING_SPENT
        except (OSError, Malformed) as error:
            log.warning("the day's bytes are counted from nothing: %s", error)
            spent = NOTHING_SPENT
        return budget.on_day(spent, day)

    def _write(self, spent: Spent) -> None:
        durable.write_file(self._file, strict_json.encode(spent))

    def _over(self) -> Failed:
        return Failed(
            FailureCode.OVER_BUDGET,
            f"the metered network's {self._network.metered_bytes_per_day} bytes for today are used up",
            retry_after_s=budget.until_next_day_s(int(self._clock() * budget.SECOND_US), self._zone),
        )


def is_metered(told: str) -> bool:
    """What `[network] metered` says: a word, or a file that holds one. One that is missing, or says anything but `no`, costs."""
    if told in ("yes", "no"):
        return told == "yes"
    try:
        with Path(told).open("rb") as stream:
            return stream.read(_WORD_BYTES_MAX).strip() != b"no"
    except OSError as error:
        log.info("whether the network is metered is not known, so it counts as metered: %s", error)
        return True
