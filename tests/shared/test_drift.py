"""When drift is called drift: seldom by chance, soon when it is there, and never from one window."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from holdfast_shared.drift import INDEX_MIN, ROWS_MIN, Watch, chi_square, reading, stability_index
from holdfast_shared.judgement import Verdict, judge_drift
from holdfast_shared.wire.report import DriftCounts

BINS = 10
EVEN = (100,) * BINS


def drawn(source: random.Random, rows: int, weights: Sequence[float]) -> tuple[int, ...]:
    found = [0] * len(weights)
    for index in source.choices(range(len(weights)), weights, k=rows):
        found[index] += 1
    return tuple(found)


def window(counts: Sequence[int], feature: str = "ink", expected: Sequence[int] = EVEN) -> tuple[DriftCounts, ...]:
    return (DriftCounts(feature=feature, counts=tuple(counts), expected=tuple(expected)),)


@pytest.mark.parametrize("degrees", range(1, 16))
@pytest.mark.parametrize("probability", [0.99, 1 - 0.01 / 8])
def test_the_quantile_is_the_tables_within_three_percent(degrees: int, probability: float) -> None:
    known = chi2.ppf(probability, degrees)
    assert chi_square(probability, degrees) == pytest.approx(known, rel=0.03)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=16))
def test_the_index_is_nothing_for_equal_shares_and_never_negative(counts: list[int]) -> None:
    assert stability_index(counts, counts) == pytest.approx(0)
    assert stability_index(counts, counts[::-1]) >= 0


def test_without_drift_few_windows_alarm_and_far_fewer_twice_in_a_row() -> None:
    """1,000 windows of the fewest rows, drawn from the reference itself."""
    source, watch, alarms, drifted = random.Random(7), Watch(), 0, 0
    for _ in range(1000):
        watch = watch.seen(window(drawn(source, ROWS_MIN, EVEN)), 0.2)
        alarms += watch.running > 0
        drifted += watch.drifted
    assert alarms <= 20
    assert drifted <= 2


def test_a_shift_is_seen_in_two_windows() -> None:
    source = random.Random(8)
    moved = [4 if index < BINS // 2 else 1 for index in range(BINS)]
    watch = Watch().seen(window(drawn(source, ROWS_MIN, moved)), 0.2)
    assert judge_drift(0.2, watch).verdict is Verdict.INSUFFICIENT
    watch = watch.seen(window(drawn(source, ROWS_MIN, moved)), 0.2)
    judged = judge_drift(0.2, watch)
    assert (judged.verdict, judged.feature, judged.bad) == (Verdict.FAIL, "ink", 2)
    assert judged.index > judged.allowed >= INDEX_MIN
    watch = watch.seen(window(drawn(source, ROWS_MIN, EVEN)), 0.2)
    assert judge_drift(0.2, watch).verdict is Verdict.PASS


def test_small_windows_are_put_together_until_they_say_something() -> None:
    source, watch = random.Random(9), Watch()
    for _ in range(3):
        watch = watch.seen(window(drawn(source, ROWS_MIN // 4, EVEN)), 0.2)
        assert judge_drift(0.2, watch).verdict is Verdict.INSUFFICIENT
    watch = watch.seen(window(drawn(source, ROWS_MIN // 4, EVEN)), 0.2)
    assert (watch.judged, watch.pending) == (1, ())
    assert watch.worst is not None
    assert watch.worst.rows == ROWS_MIN


def test_counts_of_another_reference_are_not_added_to_these() -> None:
    watch = Watch().seen(window([19] * BINS), 0.2).seen(window([1] * BINS, "tone"), 0.2)
    assert [one.feature for one in watch.pending] == ["tone"]


def test_a_small_reference_widens_the_bound() -> None:
    counts = [20] * BINS
    wide = reading(window(counts, expected=[10] * BINS)[0], 0.2)
    narrow = reading(window(counts, expected=[1000] * BINS)[0], 0.2)
    assert wide.bound > narrow.bound >= INDEX_MIN
    assert reading(window(counts)[0], 0.5).bound == 0.5
