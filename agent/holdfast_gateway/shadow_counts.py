"""What a release that shadows made of the requests: plain numbers that are added to, apart from those of what serves.

Every request that the serving slot answered while it shadowed is counted once, when its fate is known: asked and settled in
`requests`, or never asked in `dropped`.
"""

from __future__ import annotations

from holdfast_shared.histogram import Histogram, bin_of
from holdfast_shared.wire.report import DIFFERENCE_BINS, SCORE_BINS, ShadowCounts
from holdfast_worker.protocol import Compared, Outcome

_US_A_MS = 1000


class Comparisons:
    """Of one release. `taken` hands over what has come since it was last called; `totals` are of this gateway's life."""

    __slots__ = ("_open", "totals")

    def __init__(self) -> None:
        self.totals = _Numbers()
        self._open = _Numbers()

    @property
    def empty(self) -> bool:
        """Nothing has come since."""
        return not (self._open.requests or self._open.dropped)

    def dropped(self, count: int = 1) -> None:
        """Never asked: the queue was full, or there was nobody to ask."""
        for numbers in (self._open, self.totals):
            numbers.dropped += count

    def lost(self, *, hang: bool) -> None:
        """Its worker crashed or hung at it."""
        for numbers in (self._open, self.totals):
            numbers.requests += 1
            numbers.errors += 1
            numbers.hangs += hang

    def compared(self, told: Compared, serving_us: int) -> None:
        """The worker answered; `serving_us` is what the serving model had computed for the same request."""
        for numbers in (self._open, self.totals):
            numbers.add(told, serving_us)

    def taken(self) -> ShadowCounts:
        """What has come since; it begins anew."""
        found = self._open.frozen()
        self._open = _Numbers()
        return found


class _Numbers:
    __slots__ = (
        "agreed",
        "compared",
        "confidence",
        "difference",
        "dropped",
        "errors",
        "hangs",
        "incomparable",
        "latency",
        "margin",
        "nulls",
        "requests",
        "serving_confidence",
        "serving_latency",
        "serving_margin",
    )

    def __init__(self) -> None:
        self.requests = self.dropped = self.errors = self.hangs = self.nulls = self.incomparable = 0
        self.compared = self.agreed = 0
        self.difference: dict[int, int] = {}
        self.latency: dict[int, int] = {}
        self.serving_latency: dict[int, int] = {}
        self.confidence: dict[int, int] = {}
        self.margin: dict[int, int] = {}
        self.serving_confidence: dict[int, int] = {}
        self.serving_margin: dict[int, int] = {}

    def add(self, told: Compared, serving_us: int) -> None:
        self.requests += 1
        self.errors += told.outcome is Outcome.ERROR
        self.nulls += told.outcome is Outcome.NULL
        _add(self.latency, bin_of(told.compute_us / _US_A_MS))
        _add(self.serving_latency, bin_of(serving_us / _US_A_MS))
        if told.outcome in (Outcome.ERROR, Outcome.NULL):
            return
        if not told.rows:
            self.incomparable += 1
            return
        self.compared += told.rows
        self.agreed += told.agreed
        _add(self.difference, told.difference)
        _add(self.confidence, *told.confidence)
        _add(self.margin, *told.margin)
        _add(self.serving_confidence, *told.serving_confidence)
        _add(self.serving_margin, *told.serving_margin)

    def frozen(self) -> ShadowCounts:
        return ShadowCounts(
            requests=self.requests,
            dropped=self.dropped,
            errors=self.errors,
            hangs=self.hangs,
            nulls=self.nulls,
            incomparable=self.incomparable,
            compared=self.compared,
            agreed=self.agreed,
            difference=_bins(self.difference, DIFFERENCE_BINS),
            latency=Histogram(tuple(sorted(self.latency.items()))),
            serving_latency=Histogram(tuple(sorted(self.serving_latency.items()))),
            confidence=_bins(self.confidence, SCORE_BINS),
            margin=_bins(self.margin, SCORE_BINS),
            serving_confidence=_bins(self.serving_confidence, SCORE_BINS),
            serving_margin=_bins(self.serving_margin, SCORE_BINS),
        )


def _add(bins: dict[int, int], *indexes: int) -> None:
    for index in indexes:
        bins[index] = bins.get(index, 0) + 1


def _bins(counts: dict[int, int], size: int) -> tuple[int, ...]:
    """Empty where nothing was counted."""
    return tuple(counts.get(index, 0) for index in range(size)) if counts else ()
