"""What finished rollouts and rollbacks leave behind."""

from __future__ import annotations

import pytest

from holdfast_server.core.base_rules import BaseRule, release_for, taken_back, tidied
from holdfast_server.core.release_in import Taken, in_environment
from holdfast_server.core.rollout import Moment
from holdfast_server.core.standing import Condemnation, Standing, destination
from holdfast_shared import selector
from holdfast_shared.errors import Conflict, Malformed
from support.rollout_values import placed, ref, taken

NOW = Moment(at=1, monotonic_us=1)


def rule(written: str, version: str, *, standby: str = "", below: int = 10_000, salt: str = "") -> BaseRule:
    return BaseRule(
        match=selector.parse(written),
        release=placed(version),
        cause="r",
        standby=placed(standby) if standby else None,
        below=below,
        salt=salt,
    )


def said(rules: tuple[BaseRule, ...]) -> list[str]:
    return [f"{selector.written(one.match)} → {one.release.version}" for one in rules]


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ([rule("*", "2.0.0"), rule("region=eu", "1.0.0")], ["* → 2.0.0"]),
        ([rule("region=eu", "1.0.0"), rule("*", "2.0.0")], ["region=eu → 1.0.0", "* → 2.0.0"]),
        ([rule("*", "2.0.0", below=500, salt="r"), rule("*", "1.0.0")], ["* → 2.0.0", "* → 1.0.0"]),
        ([rule("region=eu", "2.0.0"), rule("region=eu, site=a", "1.0.0"), rule("*", "1.0.0")],
         ["region=eu → 2.0.0", "* → 1.0.0"]),
    ],
)  # fmt: skip
def test_what_is_wholly_covered_is_dropped(rules: list[BaseRule], kept: list[str]) -> None:
    assert said(tidied(rules)) == kept


@pytest.mark.parametrize(
    ("base", "segment", "version", "to", "after"),
    [
        ([rule("*", "1.3.0")], "region=eu", "1.3.0", "1.1.0", ["region=eu → 1.1.0", "* → 1.3.0"]),
        ([rule("*", "1.3.0")], "*", "1.3.0", "1.1.0", ["* → 1.1.0"]),
        (
            [rule("region=us", "1.0.0"), rule("*", "1.3.0")],
            "*",
            "1.3.0",
            "1.1.0",
            ["region=us → 1.0.0", "* → 1.1.0"],
        ),
        ([rule("*", "1.1.0")], "region=eu", "1.2.0", "1.1.0", ["* → 1.1.0"]),
        ([rule("*", "1.1.0")], "region=eu", "1.2.0", "1.0.0", ["region=eu → 1.0.0", "* → 1.1.0"]),
        ([], "region=eu", "1.2.0", "1.0.0", ["region=eu → 1.0.0"]),
    ],
)
def test_a_rollback_changes_the_base_of_those_that_had_the_release(
    base: list[BaseRule], segment: str, version: str, to: str, after: list[str]
) -> None:
    found = taken_back(base, selector.parse(segment), taken(version), [placed(to)], cause="b-1")
    assert said(found) == after


def test_an_environment_that_no_version_may_run_in_is_left_by_each_for_its_own() -> None:
    """Not by one that runs in another, nor outside of the segment."""
    bad, good = "sha256:" + "e" * 64, "system"
    eu, us, de = (in_environment(ref(version), bad) for version in ("1.0.0", "1.1.0", "1.2.0"))
    base = [
        BaseRule(match=selector.parse("region=eu"), release=eu, cause="r"),
        BaseRule(match=selector.parse("region=us"), release=us, cause="r"),
        BaseRule(match=selector.parse("region=de"), release=de, cause="r"),
        BaseRule(match=(), release=placed("0.9.0"), cause="r"),
    ]
    segment = selector.parse("region in (eu, us, jp)")
    goals = [in_environment(one.ref, good) for one in (eu, us)]
    found = taken_back(base, segment, Taken(release=None, environment=bad), goals, cause="b-1")
    assert [(selector.written(one.match), one.release.version, one.release.environment) for one in found] == [
        ("region=eu", "1.0.0", good),
        ("region=us", "1.1.0", good),
        ("region=de", "1.2.0", bad),
        ("*", "0.9.0", good),
    ]


@pytest.mark.parametrize(
    ("wide", "narrow", "includes"),
    [
        (Taken(release=None, environment="a"), Taken(release=ref("1.0.0"), environment="a"), True),
        (Taken(release=None, environment="a"), Taken(release=ref("1.0.0"), environment="b"), False),
        (Taken(release=None, environment="a"), Taken(release=ref("1.0.0")), False),
        (Taken(release=ref("1.0.0")), Taken(release=ref("1.0.0"), environment="a"), True),
        (Taken(release=ref("1.0.0")), Taken(release=None, environment="a"), False),
        (Taken(release=ref("1.0.0"), environment="a"), Taken(release=ref("1.0.0")), False),
    ],
)
def test_a_condemnation_is_not_said_twice(wide: Taken, narrow: Taken, includes: bool) -> None:
    assert wide.includes(narrow) is includes


def test_the_release_of_a_segment_is_one_or_none() -> None:
    rules = [rule("region=eu", "1.0.0"), rule("*", "2.0.0")]
    assert release_for(rules, selector.parse("region=eu, site=a")) == placed("1.0.0")
    assert release_for(rules, selector.parse("region=us")) == placed("2.0.0")
    assert release_for(rules, ()) is None
    assert release_for([], ()) is None


def test_a_rollback_without_to_goes_where_the_segment_came_from() -> None:
    finished = Standing(base=(rule("*", "1.3.0", standby="1.1.0"),))
    assert destination(finished, selector.parse("region=eu"), taken("1.3.0"), None) == placed("1.1.0")
    running = Standing(base=(rule("*", "1.1.0", standby="1.0.0"),))
    assert destination(running, (), taken("1.2.0"), None) == placed("1.1.0")


def test_a_rollback_to_nowhere_or_to_something_condemned_is_refused() -> None:
    with pytest.raises(Malformed, match="nothing good ran there before"):
        destination(Standing(), (), taken("1.0.0"), None)
    with pytest.raises(Malformed, match="itself"):
        destination(Standing(), (), taken("1.0.0"), placed("1.0.0"))
    bad = Condemnation(incident="r-1-halt", match=(), release=ref("1.2.0"))
    with pytest.raises(Conflict, match="condemned"):
        destination(Standing(condemned=(bad,)), (), taken("1.3.0"), placed("1.2.0"))


def test_a_rollback_moves_nobody_who_never_had_the_release() -> None:
    """A version that is nobody's base, such as a halted one or a typo, with a `to` that is not the base either."""
    eu = selector.parse("region=eu")
    standing = Standing(base=(rule("*", "1.1.0", standby="1.0.0"),))
    with pytest.raises(Malformed, match="is not what region=eu was given, but") as caught:
        destination(standing, eu, taken("1.2.0"), placed("1.0.0"))
    assert caught.value.field == "to"
    assert destination(standing, eu, taken("1.2.0"), placed("1.1.0")) == placed("1.1.0")
    assert destination(standing, eu, taken("1.1.0"), placed("1.0.0")) == placed("1.0.0")
    assert destination(Standing(), eu, taken("1.2.0"), placed("1.0.0")) == placed("1.0.0"), "it has nothing else"
