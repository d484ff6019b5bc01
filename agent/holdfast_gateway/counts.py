"""What became of the requests that one slot was asked: a sliding window for guardrails, an open one for reports.

Every request is counted in exactly one way, once its fate is known (`settlement.py`), so that nothing is ever taken back:
over any stretch, requests received by a worker = Σ requests + Σ input_faults − Σ failed_over, over all slots.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from holdfast_gateway.lifetime import Lifetime
from holdfast_gateway.shadow_counts import Comparisons
from holdfast_shared.assign import Target
from holdfast_shared.histogram import Histogram, bin_of
from holdfast_shared.wire.report import DRIFT_BINS_MAX, SCORE_BINS, DriftCounts, Window
from holdfast_worker.protocol import Measured, Measuring

# The sliding window's resolution: it forgets in steps of its length / 120.
BUCKETS_MAX: Final = 120
# Where the bins of `Sums.measured` begin: confidence at 0, then the margin's, then each feature's.
_MARGIN: Final = SCORE_BINS
_DRIFT: Final = 2 * SCORE_BINS


class Sums:
    """Plain numbers. `latency` holds the times of attempts for which the worker had its turn, `measured` what the worker told
    of its answers: `_MARGIN` and `_DRIFT` say where which bins begin.
    """

    __slots__ = (
        "agreed",
        "errors",
        "failed_over",
        "hangs",
        "input_faults",
        "labelled",
        "latency",
        "measured",
        "nulls",
        "requests",
    )

    def __init__(self) -> None:
        self.requests = self.errors = self.nulls = self.hangs = self.input_faults = self.failed_over = 0
        self.labelled = self.agreed = 0
        self.latency: dict[int, int] = {}
        self.measured: dict[int, int] = {}

    def add(self, other: Sums, sign: int) -> None:
        """Add `other`, or take it away again with sign -1."""
        self.requests += sign * other.requests
        self.errors += sign * other.errors
        self.nulls += sign * other.nulls
        self.hangs += sign * other.hangs
        self.input_faults += sign * other.input_faults
        self.failed_over += sign * other.failed_over
        for index, count in other.latency.items():
            self.latency[index] = self.latency.get(index, 0) + sign * count
        self.labelled += sign * other.labelled
        self.agreed += sign * other.agreed
        for index, count in other.measured.items():
            self.measured[index] = self.measured.get(index, 0) + sign * count

    def histogram(self) -> Histogram:
        return Histogram(tuple((index, self.latency[index]) for index in sorted(self.latency) if self.latency[index]))

    @property
    def empty(self) -> bool:
        return not (self.requests or self.input_faults or self.labelled)

    def bins(self, first: int, count: int) -> tuple[int, ...]:
        """So many of `measured`, from `first` on."""
        return tuple(self.measured.get(index, 0) for index in range(first, first + count))


class Bad(NamedTuple):
    """An attempt that failed: what it was, how long the worker had its turn, and when it was seen (CLOCK_MONOTONIC)."""

    error: bool
    hang: bool
    null: bool
    latency_ms: float
    at_s: float


class _Bucket:
    __slots__ = ("first_bad_s", "index", "memory_bytes", "sums")

    def __init__(self, index: int) -> None:
        self.index = index
        self.sums = Sums()
        self.first_bad_s: float | None = None
        self.memory_bytes = 0


class Counts:
    """Of one slot. Times are seconds of CLOCK_MONOTONIC; `wall_us` arguments are for people who read reports."""

    __slots__ = (
        "_buckets",
        "_fresh",
        "_memory_bytes",
        "_open",
        "_sliding",
        "_totals",
        "_width_s",
        "life",
        "measuring",
        "memory_bytes_max",
        "opened_at_us",
        "pipeline",
        "shadow",
        "target",
    )

    def __init__(self, pipeline: str, target: Target, *, wall_us: int) -> None:
        self.pipeline = pipeline
        self.target = target
        self.opened_at_us = wall_us
        self.memory_bytes_max = 0
        self._memory_bytes = 0  # when it was last measured
        self.life = Lifetime()
        self.shadow = Comparisons()  # where it is asked beside another
        self.measuring: Measuring | None = None  # what its worker said that it measures
        self._width_s = 1.0
        self._buckets: deque[_Bucket] = deque()
        self._fresh = Sums()  # of the newest bucket, and not yet in the three below: one place to write a request
        self._sliding = Sums()
        self._open = Sums()
        self._totals = Sums()

    def look_back(self, window_s: int) -> None:
        """Slide over so many seconds from now on."""
        self._width_s = max(window_s / BUCKETS_MAX, 0.1)
        self.forget_sliding()

    def forget_sliding(self) -> None:
        """Begin the sliding window anew: a slot that begins to serve is judged by what it does from then on."""
        self._fold()
        self._buckets.clear()
        self._sliding = Sums()

    def good(self, latency_ms: float, now: float) -> None:
        """The worker answered it well."""
        self._turn(now)
        fresh = self._fresh
        index = bin_of(latency_ms)
        fresh.requests += 1
        fresh.latency[index] = fresh.latency.get(index, 0) + 1

    def bad(self, bad: Bad, now: float, *, answered_by_another: bool) -> None:
        """The slot failed it, and that is settled."""
        bucket = self._turn(now)
        if bucket.first_bad_s is None or bad.at_s < bucket.first_bad_s:
            bucket.first_bad_s = bad.at_s
        fresh = self._fresh
        index = bin_of(bad.latency_ms)
        fresh.requests += 1
        fresh.errors += bad.error
        fresh.hangs += bad.hang
        fresh.nulls += bad.null
        fresh.failed_over += answered_by_another
        fresh.latency[index] = fresh.latency.get(index, 0) + 1

    def behind(self, now: float, *, answered_by_another: bool) -> None:
        """It was asked, and the worker was lost at an earlier request: nothing is known of this one."""
        self._turn(now)
        self._fresh.requests += 1
        self._fresh.failed_over += answered_by_another

    def input_fault(self, now: float) -> None:
        """The request's own fault, or it failed in both slots."""
        self._turn(now)
        self._fresh.input_faults += 1

    def measured(self, told: Measured) -> None:
        """What the worker measured of an answer that was just counted as good."""
        bins = self._fresh.measured
        for index in told.confidence:
            bins[index] = bins.get(index, 0) + 1
        for index in told.margin:
            bins[_MARGIN + index] = bins.get(_MARGIN + index, 0) + 1
        for number, rows in enumerate(told.drift):
            first = _DRIFT + number * DRIFT_BINS_MAX
            for index in rows:
                bins[first + index] = bins.get(first + index, 0) + 1

    def feedback(self, now: float, *, labelled: int, agreed: int) -> None:
        """An application told what its predictions should have been: it counts when it is told."""
        self._turn(now)
        self._fresh.labelled += labelled
        self._fresh.agreed += agreed

    def memory(self, size_bytes: int, now: float) -> None:
        """Its worker's memory, measured now; 0: it has none. What counts is what two measurements in a row both reached."""
        held, self._memory_bytes = min(self._memory_bytes, size_bytes), size_bytes
        self.memory_bytes_max = max(self.memory_bytes_max, held)
        if held:
            bucket = self._turn(now)
            bucket.memory_bytes = max(bucket.memory_bytes, held)

    @property
    def totals(self) -> Sums:
        """Of this gateway's life."""
        self._fold()
        return self._totals

    def slid(self, now: float, *, wall_us: int) -> tuple[Window, int | None]:
        """The sliding window, and when the first failure in it was seen, in µs."""
        self._fold()
        self._expire(now)
        first_bad = min((one.first_bad_s for one in self._buckets if one.first_bad_s is not None), default=None)
        began_s = self._buckets[0].index * self._width_s if self._buckets else now
        opened_at = max(0, wall_us - int((now - began_s) * 1_000_000))
        window = self._window(self._sliding, 0, opened_at, wall_us)
        memory_bytes = max((one.memory_bytes for one in self._buckets), default=0)
        window = msgspec.structs.replace(window, memory_bytes_max=memory_bytes)
        return window, None if first_bad is None else int(first_bad * 1_000_000)

    def close(self, number: int, *, wall_us: int) -> Window:
        """The open window; a new one is opened."""
        self._fold()
        window = self._window(self._open, number, self.opened_at_us, wall_us)
        if not self.shadow.empty:
            window = msgspec.structs.replace(window, shadow=self.shadow.taken())
        self._open = Sums()
        self.opened_at_us = wall_us
        self.memory_bytes_max = 0
        return window

    @property
    def open_is_empty(self) -> bool:
        return self._open.empty and self._fresh.empty and self.shadow.empty

    def _window(self, sums: Sums, number: int, opened_at: int, closed_at: int) -> Window:
        return Window(
            window=number,
            pipeline=self.pipeline,
            release=self.target.release,
            environment=self.target.environment,
            opened_at=opened_at,
            closed_at=max(opened_at, closed_at),
            requests=sums.requests,
            errors=sums.errors,
            nulls=sums.nulls,
            hangs=sums.hangs,
            input_faults=sums.input_faults,
            failed_over=sums.failed_over,
            latency=sums.histogram(),
            memory_bytes_max=self.memory_bytes_max,
            labelled=sums.labelled,
            agreed=sums.agreed,
            **self._measures(sums),
        )

    def _measures(self, sums: Sums) -> dict[str, Any]:
        """Fields of a window, of a release that says what is to be measured."""
        if self.measuring is None or not sums.measured:
            return {}
        drift = tuple(
            DriftCounts(
                feature=feature.name,
                counts=sums.bins(_DRIFT + number * DRIFT_BINS_MAX, len(feature.expected)),
                expected=feature.expected,
            )
            for number, feature in enumerate(self.measuring.features)
        )
        if not self.measuring.scores:
            return {"drift": drift}
        return {"confidence": sums.bins(0, SCORE_BINS), "margin": sums.bins(_MARGIN, SCORE_BINS), "drift": drift}

    def _turn(self, now: float) -> _Bucket:
        """The bucket of now."""
        index = int(now / self._width_s)
        if self._buckets and self._buckets[-1].index >= index:
            return self._buckets[-1]
        self._fold()
        self._expire(now)
        bucket = _Bucket(index)
        self._buckets.append(bucket)
        return bucket

    def _fold(self) -> None:
        """Bring what is fresh to all that it belongs to."""
        fresh = self._fresh
        if fresh.empty:
            return
        for sums in (self._buckets[-1].sums, self._sliding, self._open, self._totals):
            sums.add(fresh, 1)
        self._fresh = Sums()

    def _expire(self, now: float) -> None:
        """Forget the oldest; the newest must be folded."""
        oldest = int(now / self._width_s) - BUCKETS_MAX
        while self._buckets and self._buckets[0].index <= oldest:
            self._sliding.add(self._buckets.popleft().sums, -1)
