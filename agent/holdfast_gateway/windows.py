"""The counts of every slot, and the closed windows that no agent has acknowledged yet.

A window gets its number when it is closed, and keeps it until it is acknowledged; numbers start with the gateway's process.
While WINDOWS_KEPT_MAX are unacknowledged none is closed: the open ones go on growing, so nothing is lost and nothing is
counted twice, whatever the agent had read already.
"""

from __future__ import annotations

from typing import Final

from holdfast_gateway.control import WINDOWS_KEPT_MAX
from holdfast_gateway.counts import Counts
from holdfast_shared.assign import Target
from holdfast_shared.wire.report import Window

# A device that tried so many releases in one life of its gateway need not remember the first.
SLOTS_REMEMBERED_MAX: Final = 128


class Ledger:
    """All of one gateway's counts."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counts] = {}
        self._closed: dict[int, Window] = {}
        self._next = 0

    def counts_of(self, pipeline: str, target: Target, *, wall_us: int) -> Counts:
        """Of one slot; a slot that comes back goes on counting where it was, but for the time that it was away."""
        key = (pipeline, target.key)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counts(pipeline, target, wall_us=wall_us)
        elif counts.open_is_empty:
            counts.opened_at_us = max(counts.opened_at_us, wall_us)
        return counts

    def close(self, *, wall_us: int) -> None:
        """Close every window that holds anything, as far as there is room for them."""
        for counts in self._counts.values():
            if len(self._closed) >= WINDOWS_KEPT_MAX:
                return
            if not counts.open_is_empty:
                self._closed[self._next] = counts.close(self._next, wall_us=wall_us)
                self._next += 1

    def acknowledge(self, numbers: tuple[int, ...]) -> None:
        """The agent has them. May be repeated."""
        for number in numbers:
            self._closed.pop(number, None)

    def forget_all_but(self, named: set[tuple[str, str]]) -> None:
        """Let go of the oldest slots that are not there any more, and whose counts have been handed over."""
        for key in list(self._counts):
            if len(self._counts) <= SLOTS_REMEMBERED_MAX:
                return
            if key not in named and self._counts[key].open_is_empty:
                del self._counts[key]

    @property
    def counts(self) -> tuple[Counts, ...]:
        """Of every slot that is remembered."""
        return tuple(self._counts.values())

    @property
    def closed(self) -> tuple[Window, ...]:
        return tuple(self._closed.values())
