"""Reasoning about selectors is exact: every answer agrees with asking each possible device."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_server.core import segments
from holdfast_shared import selector
from holdfast_shared.errors import Malformed
from holdfast_shared.selector import Term

# `z` is a value that no term names, and None a device without the label: what a selector must hold for, or not, unseen.
VALUES = ("a", "b", "c")
POSSIBLE = [
    {label: value for label, value in (("region", region), ("site", site), ("ring", ring)) if value is not None}
    for region, site, ring in itertools.product((*VALUES, "z"), (*VALUES, "z", None), (*VALUES, "z", None))
]

terms = st.builds(
    Term,
    label=st.sampled_from(("region", "site", "ring")),
    op=st.sampled_from(("in", "not_in")),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=3, unique=True).map(tuple),
)
selectors = st.lists(terms, max_size=4).map(tuple)


def matched(one: segments.Match | None) -> list[int]:
    return [n for n, labels in enumerate(POSSIBLE) if one is not None and selector.holds(one, labels)]


@given(selectors, selectors)
def test_a_conjunction_is_the_devices_in_both(one: segments.Match, other: segments.Match) -> None:
    both = segments.conjunction(one, other)
    assert matched(both) == sorted(set(matched(one)) & set(matched(other)))
    assert (both is None) <= (not matched(one) or not matched(other) or not set(matched(one)) & set(matched(other)))


@given(selectors, selectors)
def test_covering_is_every_device(wide: segments.Match, narrow: segments.Match) -> None:
    assert segments.covers(wide, narrow) == (set(matched(narrow)) <= set(matched(wide)))


@given(selectors, st.sampled_from(VALUES))
def test_inside_a_region_the_region_need_not_be_asked(one: segments.Match, region: str) -> None:
    inside = segments.inside_region(one, region)
    here = [n for n, labels in enumerate(POSSIBLE) if labels["region"] == region]
    assert [n for n in matched(one) if n in here] == [n for n in matched(inside) if n in here]
    assert inside is None or all(term.label != "region" for term in inside)


@given(selectors, selectors)
def test_a_union_is_the_devices_of_either_or_none_at_all(one: segments.Match, other: segments.Match) -> None:
    joined = segments.union(one, other)
    if joined is not None:
        assert set(matched(joined)) == set(matched(one)) | set(matched(other))


def test_neighbouring_sites_join() -> None:
    joined = segments.union(selector.parse("ring=x, site=a"), selector.parse("ring=x, site=b"))
    assert joined == selector.parse("ring=x, site in (a, b)")


KNOWN = [{"region": "eu-west", "ring": "canary"}, {"region": "us-east"}]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("region=eu-wset", "did you mean 'eu-west'"),
        ("regio=eu-west", "did you mean 'region'"),
        ("ring!=canry", "canary"),
    ],
)
def test_a_typo_names_the_nearest(written: str, says: str) -> None:
    with pytest.raises(Malformed, match=says) as caught:
        segments.check_known(selector.parse(written), KNOWN, field="segment")
    assert caught.value.field == "segment"
    assert "use one of" in caught.value.next_step


def test_a_segment_that_would_crowd_a_document_is_refused() -> None:
    values = tuple(f"site-with-a-long-name-{n:04}" for n in range(200))
    with pytest.raises(Malformed, match="bytes"):
        segments.check_size((Term(label="site", op="in", values=values),), field="segment")
