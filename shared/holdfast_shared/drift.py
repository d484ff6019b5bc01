"""Whether what a release sees or answers has moved away from its publisher's reference. Pure, and the same on both sides.

Counts fall into the reference's own bins; the distance is the population stability index. On small samples it is large by
chance alone, so the alarm's bound grows with 1/n + 1/m (Yurdakul and Naranjo: "Statistical properties of the population
stability index", Journal of Risk Model Validation 14(4), 2020), and one window proves nothing: two in a row must alarm.
Drift is never held against a release: it may be the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from holdfast_shared.wire.report import DriftCounts

# Below this a window says nothing: without drift, 41 % of windows of 100 reach an index of 0.1, and 3 % of 200.
ROWS_MIN: Final = 200
# Less is no drift that anyone would act on, however sure it is.
INDEX_MIN: Final = 0.2
# Of one window of one feature; two windows in a row make it the square.
FALSE_ALARM: Final = 0.01
WINDOWS_RUNNING: Final = 2
# An empty bin has no logarithm.
_HALF: Final = 0.5


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One window of one feature: its index, and the bound that is an alarm."""

    feature: str
    rows: int
    index: float
    bound: float

    @property
    def alarms(self) -> bool:
        return self.index > self.bound


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Windows as they come: small ones are put together until they have enough rows.

    `running` counts alarms in a row up to now, `judged` all windows that had enough; `worst` is of the newest of those.
    """

    pending: tuple[DriftCounts, ...] = ()
    running: int = 0
    judged: int = 0
    worst: Reading | None = None

    @property
    def drifted(self) -> bool:
        return self.running >= WINDOWS_RUNNING

    def seen(self, counts: tuple[DriftCounts, ...], threshold: float, rows_min: int = ROWS_MIN) -> Watch:
        """After one more window. Another reference, of another release, begins anew."""
        if not counts:
            return self
        pending = _added(self.pending, counts)
        if min(sum(one.counts) for one in pending) < max(rows_min, ROWS_MIN):
            return msgspec.structs.replace(self, pending=pending)
        readings = [reading(one, threshold, features=len(pending)) for one in pending]
        worst = max(readings, key=lambda one: one.index - one.bound)
        running = self.running + 1 if worst.alarms else 0
        return Watch(running=running, judged=self.judged + 1, worst=worst)


UNWATCHED: Final = Watch()


def reading(counts: DriftCounts, threshold: float, *, features: int = 1) -> Reading:
    """One window of one feature, of so many that are looked at together."""
    rows, expected = sum(counts.counts), sum(counts.expected)
    degrees = len(counts.counts) - 1
    by_chance = chi_square(1 - FALSE_ALARM / features, degrees) * (1 / max(rows, 1) + 1 / max(expected, 1))
    return Reading(
        feature=counts.feature,
        rows=rows,
        index=stability_index(counts.counts, counts.expected),
        bound=max(INDEX_MIN, threshold, by_chance),
    )


def stability_index(counts: Sequence[int], expected: Sequence[int]) -> float:
    """Of two samples in the same bins; 0 when their shares are equal."""
    bins = len(counts)
    rows, reference = sum(counts) + _HALF * bins, sum(expected) + _HALF * bins
    shares = [
        ((here + _HALF) / rows, (there + _HALF) / reference) for here, there in zip(counts, expected, strict=True)
    ]
    return sum((here - there) * math.log(here / there) for here, there in shares)


def chi_square(probability: float, degrees: int) -> float:
    """The quantile, within 3 %. Source: Wilson and Hilferty, PNAS 17(12), 1931."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + _normal(probability) * math.sqrt(spread)) ** 3)


def _normal(probability: float) -> float:
    """The standard normal's quantile, by halving: no table, and no library that a device lacks."""
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 * math.erfc(-middle / math.sqrt(2)) < probability:
            low = middle
        else:
            high = middle
    return low


def _added(pending: tuple[DriftCounts, ...], counts: tuple[DriftCounts, ...]) -> tuple[DriftCounts, ...]:
    if [(one.feature, one.expected) for one in pending] != [(one.feature, one.expected) for one in counts]:
        return counts
    return tuple(
        msgspec.structs.replace(one, counts=tuple(map(sum, zip(one.counts, more.counts, strict=True))))
        for one, more in zip(pending, counts, strict=True)
    )
