"""A release's reference says everything that is wrong with it, before it is signed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import reference
from holdfast_shared.errors import Malformed

GOOD: dict[str, Any] = {
    "name": "ink",
    "tensor": "request.image",
    "reduce": "mean",
    "edges": [1, 2.5],
    "counts": [40, 40, 40],
}


def raw(*features: dict[str, Any]) -> bytes:
    return json.dumps({"features": list(features)}).encode()


def test_what_is_written_is_read() -> None:
    (ink, score) = reference.read(raw(GOOD, {**GOOD, "name": "top", "tensor": "probabilities"})).features
    assert (ink.of_request, score.of_request) == ("image", None)
    assert (ink.edges, ink.counts) == ((1.0, 2.5), (40, 40, 40))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": [2, 1]}, "ascend"),
        ({"edges": [1, 1]}, "ascend"),
        ({"edges": [1]}, "2 bins; counts has 3"),
        ({"counts": [1, 2, 3]}, "at least 100"),
        ({"counts": [-1, 200, 3]}, "counts"),
        ({"reduce": "median"}, "median"),
        ({"edges": list(range(16)), "counts": [100] * 17}, "edges"),
        ({"more": 1}, "more"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed) as found:
        reference.read(raw({**GOOD, **change}))
    assert words in f"{found.value}"


def test_names_are_distinct_and_tensors_are_the_releases() -> None:
    with pytest.raises(Malformed, match="one name"):
        reference.read(raw(GOOD, GOOD))
    wrong = reference.faults_in(raw({**GOOD, "tensor": "request.sound"}), {"image"}, {"probabilities"})
    assert wrong == ["features[0] (ink): no tensor 'request.sound'; there are probabilities, request.image"]
    assert reference.faults_in(raw(GOOD), {"image"}, {"probabilities"}) == []
    assert reference.faults_in(b"{", {"image"}, {"probabilities"})


@given(st.lists(st.floats(-1e6, 1e6), min_size=100, max_size=300), st.integers(2, 16))
def test_bins_of_a_sample_hold_all_of_it_and_ascend(values: list[float], count: int) -> None:
    """As many as were asked for at most, and none is counted where numpy's digitize would not count it."""
    if len(set(values)) == 1:
        return
    edges, counts = reference.bins_of(values, count)
    assert list(edges) == sorted(set(edges))
    assert 2 <= len(counts) == len(edges) + 1 <= count
    assert list(counts) == np.bincount(np.digitize(values, edges), minlength=len(counts)).tolist()


def test_bins_have_equal_shares_where_values_allow() -> None:
    assert reference.bins_of([float(n) for n in range(1000)], 10)[1] == (100,) * 10
    edges, counts = reference.bins_of([0.0] * 900 + [float(n) for n in range(1, 101)], 10)
    assert (edges, counts) == ((1.0,), (900, 100))
    with pytest.raises(ValueError, match="all values are the same"):
        reference.bins_of([1.0] * 100, 10)
    with pytest.raises(ValueError, match="at least 100"):
        reference.bins_of([1.0, 2.0], 10)
