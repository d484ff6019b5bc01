"""`assign`: total, deterministic, and exactly the rules of the vocabulary, case by case and for arbitrary documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import cohort, selector, strict_json
from holdfast_shared.assign import Decision, LocalCondemnation, Target, View, assign, condemned
from holdfast_shared.wire.assignment import Assignment, Condemned, Mode, ReleaseRef, Retry, Rule, Scope

RELEASES = {name: ReleaseRef(version=f"1.{name}.0", digest=f"sha256:{int(name):064x}") for name in "0123"}
TARGETS = {name: Target(release=release) for name, release in RELEASES.items()}
LABELS = {"region": "eu", "ring": "main"}


def rule(name: str, mode: Mode = "serve", match: str = "*", below: int = cohort.BUCKETS, salt: str = "") -> Rule:
    return Rule(mode=mode, release=RELEASES[name], match=selector.parse(match), below=below, salt=salt)


def document(
    *rules: Rule, condemned: tuple[Condemned, ...] = (), retry: tuple[Retry, ...] = (), device: str | None = None
) -> Assignment:
    scope = Scope(device=device) if device else Scope(region="eu")
    return Assignment(
        fleet="f",
        scope=scope,
        pipeline="p",
        epoch=1,
        seq=1,
        issued_at=0,
        not_after=1,
        rules=rules,
        condemned=condemned,
        retry=retry,
    )


def bad(name: str, match: str = "*") -> Condemned:
    return Condemned(release=RELEASES[name], match=selector.parse(match), incident="i-1")


def view(current: str = "", previous: str = "", candidate: str = "", here: str = "", attempt: int = 0) -> View:
    return View(
        device="d-1",
        labels=LABELS,
        current=TARGETS.get(current),
        previous=TARGETS.get(previous),
        candidate=TARGETS.get(candidate),
        condemned_here=(LocalCondemnation(target=TARGETS[here], attempt=attempt),) if here else (),
    )


@pytest.mark.parametrize(
    ("documents", "seen", "serve", "urgent", "stopgap"),
    [
        pytest.param([], view("1"), "", False, "", id="no document: keep what runs"),
        pytest.param([document(rule("1"))], view(), "1", False, "", id="first install"),
        pytest.param([document(rule("2"), rule("1"))], view("1"), "2", False, "", id="rules in order"),
        pytest.param(
            [document(rule("2", match="ring=canary"), rule("1"))],
            view("1"),
            "1",
            False,
            "",
            id="a match that fails is passed over",
        ),
        pytest.param([document(rule("2", below=0), rule("1"))], view("1"), "1", False, "", id="no bucket lies under 0"),
        pytest.param(
            [document(rule("2", "keep"), rule("1"))], view("1"), "1", False, "", id="keep: not for those who lack it"
        ),
        pytest.param(
            [document(rule("2", "keep"), rule("1"))], view("2", "1"), "2", False, "", id="keep: for those who serve it"
        ),
        pytest.param(
            [document(rule("2", "keep"), rule("1"))],
            view("1", candidate="2"),
            "2",
            False,
            "",
            id="keep: for those in trial",
        ),
        pytest.param([document(rule("2", "stage"), rule("1"))], view("1"), "1", False, "", id="stage never serves"),
        pytest.param([document(rule("2", "shadow"), rule("1"))], view("1"), "1", False, "", id="shadow never serves"),
        pytest.param(
            [document(rule("2"), rule("1"), condemned=(bad("2"),))],
            view("1"),
            "1",
            False,
            "",
            id="not there: its condemnation moves nobody",
        ),
        pytest.param(
            [document(rule("2"), rule("1"), condemned=(bad("2"),))],
            view("2", "1"),
            "1",
            True,
            "1",
            id="urgent: back to previous",
        ),
        pytest.param(
            [document(rule("2"), rule("1"), condemned=(bad("2"),))],
            view("1", "0", candidate="2"),
            "1",
            True,
            "1",
            id="urgent: in trial",
        ),
        pytest.param(
            [document(rule("0"), condemned=(bad("2"),))],
            view("2", "1"),
            "0",
            True,
            "1",
            id="urgent: previous until the target is here",
        ),
        pytest.param(
            [document(condemned=(bad("2"),))], view("2", "1"), "", True, "1", id="urgent without a rule: previous"
        ),
        pytest.param(
            [document(condemned=(bad("2"), bad("1")))],
            view("2", "1"),
            "",
            True,
            "",
            id="urgent with nowhere to go: stay and report",
        ),
        pytest.param(
            [document(rule("2"), rule("1"), condemned=(bad("2", "ring=canary"),))],
            view("2"),
            "2",
            False,
            "",
            id="condemned elsewhere",
        ),
        pytest.param(
            [document(rule("2"), rule("1"))], view("1", here="2"), "1", False, "", id="condemned here: the next rule"
        ),
        pytest.param(
            [document(rule("2"), retry=(Retry(release=RELEASES["2"], attempt=1),))],
            view("1", here="2"),
            "2",
            False,
            "",
            id="retried since",
        ),
        pytest.param(
            [document(rule("2"), retry=(Retry(release=RELEASES["2"], attempt=1),))],
            view("1", here="2", attempt=1),
            "",
            False,
            "",
            id="failed again at that attempt",
        ),
        pytest.param(
            [document(rule("1")), document(rule("2"), device="d-1")],
            view("1"),
            "2",
            False,
            "",
            id="a device's document before its region's",
        ),
        pytest.param(
            [document(Rule(mode="remove"), rule("1"))], view("1"), "", False, "", id="remove stops the search"
        ),
    ],
)
def test_the_rules(documents: list[Assignment], seen: View, serve: str, urgent: bool, stopgap: str) -> None:
    decision = assign(documents, seen)
    assert decision.serve == TARGETS.get(serve)
    assert decision.urgent is urgent
    assert decision.stopgap == TARGETS.get(stopgap)


def test_a_condemned_pair_leaves_the_release_in_another_environment_alone() -> None:
    other = "sha256:" + "e" * 64
    pair = Condemned(release=RELEASES["1"], environment=other, incident="i")
    documents = [document(rule("1"), condemned=(pair,))]
    assert not condemned(documents, view(), TARGETS["1"])
    assert condemned(documents, view(), Target(release=RELEASES["1"], environment=other))
    everything = [document(condemned=(Condemned(environment=other, incident="i"),))]
    assert condemned(everything, view(), Target(release=RELEASES["2"], environment=other))


def test_stage_and_shadow_are_decided_beside_serve() -> None:
    decision = assign([document(rule("2", "stage"), rule("3", "shadow"), rule("1"))], view("1"))
    assert decision == Decision(serve=TARGETS["1"], reason="rule", stage=(TARGETS["2"],), shadow=TARGETS["3"])


def test_remove_is_said() -> None:
    assert assign([document(Rule(mode="remove"))], view("1")).remove


names = st.sampled_from("0123")
matches = st.sampled_from(["*", "ring=main", "ring=canary", "region=eu", "region!=eu"])
rules = st.builds(
    rule,
    names,
    st.sampled_from(["serve", "keep", "stage", "shadow"]),
    matches,
    st.integers(0, 10_000),
    st.sampled_from(["a", "b"]),
)
documents = st.builds(
    lambda rules, bads, retries, device: document(
        *rules, condemned=tuple(bads), retry=tuple(retries), device="d-1" if device else None
    ),
    st.lists(st.one_of(rules, st.just(Rule(mode="remove"))), max_size=5),
    st.lists(st.builds(bad, names, matches), max_size=3),
    st.lists(
        st.builds(lambda name, attempt: Retry(release=RELEASES[name], attempt=attempt), names, st.integers(0, 3)),
        max_size=2,
    ),
    st.booleans(),
)
slots = st.sampled_from(["", "0", "1", "2", "3"])
views = st.builds(view, slots, slots, slots, slots, st.integers(0, 2))


@given(st.lists(documents, max_size=2), views)
def test_it_is_total_and_never_decides_for_what_is_condemned(given_documents: list[Assignment], seen: View) -> None:
    decision = assign(given_documents, seen)
    for target in (decision.serve, decision.stopgap, decision.shadow, decision.standby, *decision.stage):
        assert target is None or not condemned(given_documents, seen, target)
    named = {entry.release.digest for doc in given_documents for entry in doc.rules if entry.release}
    assert decision.serve is None or decision.serve.release.digest in named


@given(st.lists(documents, max_size=2), views)
def test_both_sides_decide_the_same(given_documents: list[Assignment], seen: View) -> None:
    """The server asks with values, the device with what it parsed from bytes, in whatever order they came."""
    parsed = [
        strict_json.decode(strict_json.encode(doc), Assignment, what="d", size_bytes_max=32_768)
        for doc in given_documents
    ]
    if len({doc.scope.key for doc in parsed}) == len(parsed):
        parsed.reverse()
    assert assign(parsed, seen) == assign(given_documents, seen)


@given(documents, views)
def test_following_a_decision_changes_no_decision(doc: Assignment, seen: View) -> None:
    """Once a device serves what it was told, it is told the same again: no flapping."""
    first = assign([doc], seen)
    if first.serve is None:
        return
    after = View(
        device=seen.device,
        labels=seen.labels,
        current=first.serve,
        previous=seen.current,
        condemned_here=seen.condemned_here,
    )
    again = assign([doc], after)
    assert again.serve is not None
    assert not again.urgent
    assert again.serve == first.serve


# ---------------------------------------------------------------- environments
E1, E2 = f"sha256:{0xE1:064x}", f"sha256:{0xE2:064x}"


def placed(name: str, environment: str) -> Target:
    return Target(release=RELEASES[name], environment=environment)


def in_place(name: str, environment: str, **more: str) -> Rule:
    return Rule(mode="serve", release=RELEASES[name], environment=environment, **more)  # type: ignore[arg-type] # a test's


@pytest.mark.parametrize(
    ("condemned", "serve", "urgent", "stopgap"),
    [
        pytest.param((), placed("2", E2), False, None, id="the rule's environment"),
        pytest.param(
            (Condemned(environment=E2, incident="i"),),
            placed("2", E1),
            True,
            placed("2", E1),
            id="an environment alone",
        ),
        pytest.param(
            (Condemned(environment=E2, release=RELEASES["2"], incident="i"),),
            placed("2", E1),
            True,
            placed("2", E1),
            id="the pair: the same release, in the other environment",
        ),
        pytest.param(
            (Condemned(environment=E2, release=RELEASES["1"], incident="i"),),
            placed("2", E2),
            False,
            None,
            id="a pair with another release moves nobody",
        ),
        pytest.param(
            (Condemned(release=RELEASES["2"], incident="i"),),
            placed("1", "system"),
            True,
            None,
            id="the release: in whichever environment",
        ),
    ],
)
def test_a_release_and_its_environment_are_condemned_together_or_apart(
    condemned: tuple[Condemned, ...], serve: Target, urgent: bool, stopgap: Target | None
) -> None:
    """A device that serves 2 in E2, with 2 in E1 beside it."""
    documents = [document(in_place("2", E2), in_place("2", E1), rule("1"), condemned=condemned)]
    seen = View(device="d-1", labels=LABELS, current=placed("2", E2), previous=placed("2", E1))
    found = assign(documents, seen)
    assert (found.serve, found.urgent, found.stopgap) == (serve, urgent, stopgap)


def test_what_failed_here_in_one_environment_may_run_in_another() -> None:
    here = LocalCondemnation(target=placed("2", E2))
    seen = View(device="d-1", labels=LABELS, current=placed("1", "system"), condemned_here=(here,))
    assert assign([document(in_place("2", E2), in_place("2", E1))], seen).serve == placed("2", E1)


def test_a_standby_is_in_the_environment_that_the_rule_says() -> None:
    given = Rule(mode="serve", release=RELEASES["2"], standby=RELEASES["2"], standby_environment=E1, environment=E2)
    assert assign([document(given)], view("1")).standby == placed("2", E1)
    own = Rule(mode="serve", release=RELEASES["2"], standby=RELEASES["1"], environment=E2)
    assert assign([document(own)], view("1")).standby == placed("1", "system")
