"""The histogram is off by at most 1 %, and merging is addition in any order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import histogram
from holdfast_shared.histogram import Histogram, Tally, merged

latencies = st.lists(st.floats(0.1, 60_000), min_size=1, max_size=200)


def _of(values: list[float]) -> Histogram:
    tally = Tally()
    for value in values:
        tally.add(value)
    return tally.freeze()


@given(latencies, st.floats(0.01, 1.0))
def test_a_quantile_is_within_one_percent(values: list[float], fraction: float) -> None:
    ordered = sorted(values)
    rank = max(-(-round(fraction * len(values) * 1e9) // 10**9), 1)
    exact = ordered[min(rank, len(ordered)) - 1]
    found = _of(values).quantile_ms(min(rank, len(ordered)) / len(ordered) - 1e-12)
    assert found is not None
    assert abs(found - exact) <= exact * (histogram.ACCURACY + 1e-9)


@given(latencies, latencies, latencies)
def test_merging_is_the_histogram_of_everything(one: list[float], two: list[float], three: list[float]) -> None:
    whole = _of(one + two + three)
    assert merged([_of(one), _of(two), _of(three)]) == whole
    assert merged([_of(three), merged([_of(two), _of(one)])]) == whole


def test_slow_requests_are_never_counted_too_many() -> None:
    drawn = random.Random(7)
    values = [drawn.uniform(150, 250) for _ in range(5_000)]
    counted = _of(values).count_above(200)
    assert sum(value > 204.1 for value in values) <= counted <= sum(value > 200 for value in values)


def test_the_ends_are_kept() -> None:
    whole = _of([0.0, 0.05, 10**9])
    assert whole.count == 3
    assert whole.bins[0] == (0, 2)
    assert whole.bins[-1] == (histogram.BINS - 1, 1)


@pytest.mark.parametrize("bins", [((5, 1), (4, 1)), ((-1, 1),), ((histogram.BINS, 1),), ((3, 0),)])
def test_bins_that_no_tally_makes_are_refused(bins: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="bins ascend"):
        Histogram(bins)


def test_the_empty_one_has_no_quantile() -> None:
    assert Histogram().quantile_ms(0.99) is None
