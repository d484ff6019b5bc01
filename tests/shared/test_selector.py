"""Selectors: what is written is what is parsed, and disjoint means that no device is in both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import selector
from holdfast_shared.errors import Malformed
from holdfast_shared.selector import Term

words = st.sampled_from(["a", "b", "c"])
terms = st.builds(
    Term,
    label=st.sampled_from(["site", "ring"]),
    op=st.sampled_from(["in", "not_in"]),
    values=st.lists(words, min_size=1, max_size=3, unique=True).map(tuple),
)
selectors = st.lists(terms, max_size=4).map(tuple)
memberships = st.dictionaries(st.sampled_from(["site", "ring"]), words)


@given(selectors)
def test_the_written_form_parses_back(value: tuple[Term, ...]) -> None:
    assert selector.parse(selector.written(value)) == value


@given(selectors, selectors, memberships)
def test_no_device_is_in_two_disjoint_segments(
    one: tuple[Term, ...], other: tuple[Term, ...], labels: dict[str, str]
) -> None:
    if selector.disjoint(one, other):
        assert not (selector.holds(one, labels) and selector.holds(other, labels))


def test_disjoint_finds_what_it_should() -> None:
    assert selector.disjoint(selector.parse("region=eu"), selector.parse("region=us"))
    assert selector.disjoint(selector.parse("region=eu"), selector.parse("region!=eu"))
    assert selector.disjoint(selector.parse("site in (a, b)"), selector.parse("site not in (a, b)"))
    assert not selector.disjoint(selector.parse("region=eu"), selector.parse("site=a"))
    assert not selector.disjoint((), selector.parse("site=a"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("region==eu", "region==eu"),
        ("region", "region"),
        ("region=eu west", "west"),
        ("region=eu,", ""),
        ("site in a, b", "site in a"),
        ("site in (a,, b)", "''"),
        ("Region=eu", "'Region'"),
        ("site in ()", "''"),
        ("region=eu; site=a", "; site=a"),
    ],
)
def test_a_typo_is_named_and_shown_how_to_write(text: str, named: str) -> None:
    with pytest.raises(Malformed) as refused:
        selector.parse(text)
    assert named in str(refused.value)
    assert "region=eu-west" in str(refused.value)


def test_not_in_holds_without_the_label() -> None:
    assert selector.holds(selector.parse("ring!=canary"), {})
    assert not selector.holds(selector.parse("ring=canary"), {})
