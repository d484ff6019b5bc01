"""The exact binomial agrees with scipy's over the range in which we use it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from holdfast_shared.binomial import upper_tail


@given(
    st.integers(0, 20_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))),
    st.floats(0.0005, 0.9),
)
def test_it_is_scipy_s_survival_function(counts: tuple[int, int], chance: float) -> None:
    successes, trials = counts
    expected = float(binom.sf(successes - 1, trials, chance))
    assert math.isclose(upper_tail(successes, trials, chance), expected, rel_tol=1e-6, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "chance", "expected"), [(0, 0, 0.1, 1.0), (1, 10, 0.0, 0.0), (3, 10, 1.0, 1.0)]
)
def test_the_edges(successes: int, trials: int, chance: float, expected: float) -> None:
    assert upper_tail(successes, trials, chance) == expected


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0"):
        upper_tail(5, 3, 0.1)
