"""Each way of the table of states, once: a transcript that takes it. One that is missing, or leads elsewhere, fails here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec
import pytest

from holdfast_agent.core import deadlines, life, slots
from holdfast_agent.core.events import GatewayGone, RollbackAsked
from holdfast_agent.core.record import PipelineRecord, State
from holdfast_agent.core.slots import TRANSITIONS
from holdfast_agent.core.trial import COUNT_GRACE_US
from holdfast_gateway.control import SlotState
from holdfast_shared.wire.assignment import Rule
from support import two_pipelines
from support.playbook import BEGAN, PIPELINE, SECOND, Playbook, assignment, bad, counts, release, rule, target
from support.wanted import fetches

IDLE, FETCHING, STAGED, TESTING = State.IDLE, State.FETCHING, State.STAGED, State.SELF_TESTING
TRIAL, SHADOWING, FALLING = State.TRIAL, State.SHADOWING, State.FALLING_BACK
Happening = Callable[[Playbook], object]


# Where a way begins.


def serving(*names: str) -> Playbook:
    """The last serves, the one before it is its refuge."""
    device = Playbook()
    device.connect()
    for name in names:
        device.serve(name)
    return device


def idle() -> Playbook:
    return serving("1", "2")


def fetching() -> Playbook:
    """2 serves, 1 is its refuge, 3 is on its way."""
    device = idle()
    device.assigned(rule("3"), rule("2"))
    return device


def staged() -> Playbook:
    """The region's document has come to ask for what this agent does not know."""
    device = fetching()
    device.document(assignment(rule("3"), rule("2"), seq=20, critical=["teleport"]))
    device.fetched("3")
    return device


def under_test() -> Playbook:
    device = fetching()
    device.fetched("3")
    return device


def trial() -> Playbook:
    device = fetching()
    device.to_trial("3")
    device.ready("2", "3")
    return device


def unconfirmed() -> Playbook:
    """The self-test passed, and the gateway says no more of what is on trial."""
    device = fetching()
    device.fetched("3")
    device.ready("3")
    return device


def falling() -> Playbook:
    device = trial()
    breached("3")(device)
    return device


def standby() -> Playbook:
    device = serving("1")
    device.assigned(rule("1", standby="4"))
    return device


def damaged() -> Playbook:
    device = idle()
    device.failed("1", "damaged-blob", "2")
    return device


def only_staging() -> Playbook:
    device = serving("1")
    device.assigned(rule("2", "stage"), rule("1"))
    device.fetched("2")
    return device


def condemned_alone() -> Playbook:
    """What serves is condemned, there is nothing to turn to, and 3 is being tested to take over."""
    device = serving("1")
    device.assigned(rule("3"), condemned=[bad("1")])
    device.fetched("3")
    return device


def first_trial() -> Playbook:
    device = serving()
    device.assigned(rule("1"))
    device.to_trial("1")
    return device


def shadow_under_test() -> Playbook:
    device = serving("1", "2")
    device.device = replace(device.device, own=replace(device.device.own, health_us=3600 * SECOND))  # a month is long
    device.assigned(rule("3", "shadow"), rule("2"))
    device.fetched("3")
    return device


def shadowing() -> Playbook:
    """2 serves, 1 is its refuge, 3 shadows."""
    device = shadow_under_test()
    device.shadows("3")
    assert device.pipeline.state is SHADOWING
    return device


def related_shadowing() -> Playbook:
    """2 serves and is shadowed by 3; it requires what another pipeline serves."""
    device = two_pipelines.both_newer()
    device.assigned(rule("3", "shadow"), rule("2"))
    device.fetched("3")
    device.shadows("3")
    assert device.pipeline.state is SHADOWING
    return device


def related(*more: str) -> Callable[[], Playbook]:
    """2 serves, and requires what another pipeline serves; what `more` says has happened since."""

    def begin() -> Playbook:
        device = two_pipelines.both_newer()
        if "assigned" in more:
            device.assigned(rule("3"), rule("2"))
        if "held up" in more:
            device.document(assignment(rule("3"), rule("2"), seq=20, critical=["teleport"]))
        if "fetched" in more:
            device.fetched("3")
        return device

    return begin


# What happens then.


def assigned(*rules: Rule) -> Happening:
    return lambda device: device.document(assignment(*rules, seq=50))


def condemned(name: str, *rules: Rule) -> Happening:
    return lambda device: device.document(assignment(*rules, seq=50, condemned=[bad(name)]))


def breached(name: str) -> Happening:
    return lambda device: device.tally(counts(name, requests=40, nulls=20))


def failed(name: str, code: str, *ready: str) -> Happening:
    return lambda device: device.failed(name, code, *ready)


def fetched(name: str) -> Happening:
    return lambda device: device.fetched(name)


def ready(*names: str) -> Happening:
    return lambda device: device.ready(*names)


def by_hand(name: str) -> Happening:
    return lambda device: device.play(RollbackAsked(pipeline=PIPELINE, target=target(name)))


def the_other_breached(device: Playbook) -> None:
    assert isinstance(device, two_pipelines.TwoPipelines)
    device.q_tally("6", nulls=40)


def waited(us: int) -> Happening:
    return lambda device: device.wait(us / SECOND + 1)


def removed(device: Playbook) -> None:
    device.document(assignment(Rule(mode="remove"), seq=50))


def restarted(device: Playbook) -> None:
    device.start(release("1"), release("2"), release("3"))


def shadow_said(state: SlotState, code: str = "") -> Happening:
    return lambda device: device.shadows("3", state, code=code)


def shadowed_to_the_end(device: Playbook) -> None:
    device.document(assignment(rule("3", "shadow"), rule("2"), seq=50, not_after=LATER))
    device.wait(deadlines.SHADOW_HOURS_MAX * 3600 + 1)


def booted_in_trial(device: Playbook) -> None:
    for boot in range(life.STARTS_IN_TRIAL_MAX):
        assert device.pipeline.state is TRIAL
        device.own = replace(device.own, boot=f"again-{boot}")
        restarted(device)


LATER: Final = BEGAN.at + 30 * 86_400 * SECOND
SERVES_NO_MORE: Final = "what serves breached, crashed, or is condemned"
ALSO_TAKEN: Final = "what serves is taken along"
TAKEN_ALONG: Final = "taken along by a pipeline that went back"
CONFIRMED_US: Final = deadlines.trial_confirmed_by(release("3"), BEGAN) - BEGAN.monotonic_us
TESTED_US: Final = deadlines.self_tested_by(release("3"), BEGAN) - BEGAN.monotonic_us
WAYS: Final[dict[tuple[State, State, str], tuple[Callable[[], Playbook], Happening]]] = {
    (IDLE, FETCHING, "a target that is not in its slot"): (idle, assigned(rule("3"))),
    (IDLE, FETCHING, "a slot's bytes are damaged"): (idle, failed("1", "damaged-blob", "2")),
    (IDLE, FALLING, "breached a guardrail"): (idle, breached("2")),
    (IDLE, FALLING, "crashed"): (idle, failed("2", "crash-loop", "1")),
    (IDLE, FALLING, "condemned"): (idle, condemned("2", rule("1"))),
    (IDLE, FALLING, "left by hand"): (idle, by_hand("2")),
    (IDLE, FALLING, TAKEN_ALONG): (related(), the_other_breached),
    (FETCHING, FALLING, ALSO_TAKEN): (related("assigned"), the_other_breached),
    (STAGED, FALLING, ALSO_TAKEN): (related("assigned", "held up", "fetched"), the_other_breached),
    (TESTING, FALLING, ALSO_TAKEN): (related("assigned", "fetched"), the_other_breached),
    (TRIAL, FALLING, TAKEN_ALONG): (two_pipelines.both_on_trial, the_other_breached),
    (FETCHING, STAGED, "downloaded and verified"): (fetching, fetched("3")),
    (FETCHING, IDLE, "failed"): (fetching, lambda device: device.not_fetched("3")),
    (FETCHING, IDLE, "deadline"): (fetching, waited(deadlines.FETCH_US)),
    (FETCHING, IDLE, "superseded"): (fetching, assigned(rule("2"))),
    (FETCHING, IDLE, "a standby is in its slot"): (standby, fetched("4")),
    (FETCHING, IDLE, "a slot is whole again"): (damaged, fetched("1")),
    (FETCHING, IDLE, "the agent was restarted"): (fetching, restarted),
    (FETCHING, FALLING, SERVES_NO_MORE): (fetching, breached("2")),
    (STAGED, TESTING, "allowed to go forward"): (staged, assigned(rule("3"), rule("2"))),
    (STAGED, IDLE, "deadline"): (staged, waited(deadlines.STAGED_US)),
    (STAGED, IDLE, "superseded"): (staged, assigned(rule("2"))),
    (STAGED, IDLE, "the agent was restarted"): (staged, restarted),
    (STAGED, FALLING, SERVES_NO_MORE): (staged, failed("2", "crash-loop", "1")),
    (TESTING, TRIAL, "the self-test passed"): (under_test, ready("3")),
    (TESTING, IDLE, "failed, and condemned here"): (under_test, failed("3", "self-test-failed", "2")),
    (TESTING, IDLE, "failed for no fault of its own"): (under_test, failed("3", "damaged-blob", "2")),
    (TESTING, IDLE, "deadline"): (under_test, waited(TESTED_US)),
    (TESTING, IDLE, "only staged"): (only_staging, ready("1", "2")),
    (TESTING, IDLE, "superseded"): (under_test, assigned(rule("2"))),
    (TESTING, IDLE, "the agent was restarted"): (under_test, restarted),
    (TESTING, FALLING, "passed, and what serves is condemned: no trial"): (condemned_alone, ready("1", "3")),
    (TESTING, FALLING, SERVES_NO_MORE): (under_test, condemned("2", rule("1"))),
    (TRIAL, IDLE, "committed"): (trial, waited(11 * SECOND + COUNT_GRACE_US)),
    (TRIAL, IDLE, "nothing to turn to: committed unproven"): (first_trial, breached("1")),
    (TRIAL, IDLE, "superseded and dropped"): (trial, assigned(rule("2"))),
    (TRIAL, IDLE, "removed"): (trial, removed),
    (TRIAL, FALLING, "breached a guardrail"): (trial, breached("3")),
    (TRIAL, FALLING, "crashed"): (trial, failed("3", "crash-loop", "2")),
    (TRIAL, FALLING, "condemned"): (trial, condemned("3", rule("2"))),
    (TRIAL, FALLING, "left by hand"): (trial, by_hand("3")),
    (TRIAL, FALLING, "the device started again and again"): (trial, booted_in_trial),
    (TRIAL, FALLING, "deadline"): (unconfirmed, waited(CONFIRMED_US)),
    (TESTING, SHADOWING, "the self-test passed, and it only shadows"): (shadow_under_test, shadow_said("ready")),
    (SHADOWING, IDLE, "failed, and condemned here"): (shadowing, shadow_said("failed", "crash-loop")),
    (SHADOWING, IDLE, "failed for no fault of its own"): (shadowing, shadow_said("failed", "damaged-blob")),
    (SHADOWING, IDLE, "deadline"): (shadowing, shadowed_to_the_end),
    (SHADOWING, IDLE, "superseded"): (shadowing, assigned(rule("4"), rule("3", "shadow"), rule("2"))),
    (SHADOWING, IDLE, "removed"): (shadowing, removed),
    (SHADOWING, FALLING, SERVES_NO_MORE): (shadowing, breached("2")),
    (SHADOWING, FALLING, ALSO_TAKEN): (related_shadowing, the_other_breached),
    (FALLING, IDLE, "the gateway confirms what serves"): (falling, ready("2")),
    (FALLING, IDLE, "what serves failed"): (falling, failed("2", "damaged-blob")),
    (FALLING, IDLE, "deadline"): (falling, waited(deadlines.FALLING_BACK_US)),
    (FALLING, IDLE, "removed"): (falling, removed),
}
NAMES: Final = [f"{one} to {other}: {why}" for one, other, why in WAYS]


def test_every_way_of_the_table_has_a_transcript() -> None:
    assert WAYS.keys() == {(*change, why) for change, ways in TRANSITIONS.items() for why in ways}


@pytest.mark.parametrize(("way", "transcript"), WAYS.items(), ids=NAMES)
def test_the_way_is_taken(
    way: tuple[State, State, str],
    transcript: tuple[Callable[[], Playbook], Happening],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first change of state after the happening is the way's, as the shipped code makes it."""
    begin, happen = transcript
    device = begin()
    changes: list[tuple[State, State]] = []
    moved = slots.moved

    def watched(pipeline: PipelineRecord, state: State) -> PipelineRecord:
        if pipeline.state is not state:
            changes.append((pipeline.state, state))
        return moved(pipeline, state)

    with monkeypatch.context() as patch:
        patch.setattr(slots, "moved", watched)
        happen(device)
    assert changes[:1] == [way[:2]]


# The deadlines, told and counted.


def test_what_is_held_up_for_a_day_is_told_with_what_holds_it_and_waits_in_idle() -> None:
    """It condemns nothing, and goes forward once it may, without a second download of what is there."""
    device = staged()
    device.wait(deadlines.STAGED_US / SECOND + 1)
    (told,) = device.events("fetch_failed")
    assert (told.code, "teleport" in told.detail) == ("held-up", True)
    assert device.pipeline.condemned_here == ()
    assert fetches(device.wait(3600)) == []
    assert "teleport" in device.report().waiting_for
    assert fetches(device.document(assignment(rule("3"), rule("2"), seq=50, not_after=LATER))) == ["3"]


def test_waiting_for_the_rules_own_time_counts_against_nothing() -> None:
    """Two days of waiting for `not_before`, then held up by something else: that has its whole day."""
    device = fetching()
    later = msgspec.structs.replace(rule("3"), not_before=device.now.at + 2 * 86_400 * SECOND)
    device.document(assignment(later, rule("2"), seq=20, not_after=LATER))
    device.fetched("3")
    device.wait(2 * 86_400 - 10)
    assert (device.pipeline.state, device.events("fetch_failed")) == (STAGED, [])
    device.document(assignment(later, rule("2"), seq=21, critical=["teleport"], not_after=LATER))
    device.wait(deadlines.STAGED_US / SECOND - 100)
    assert device.pipeline.state is STAGED
    device.wait(200)
    assert device.events("fetch_failed")[-1].code == "held-up"


def test_a_trial_that_is_never_confirmed_falls_back_and_condemns_nothing() -> None:
    device = unconfirmed()
    device.wait(CONFIRMED_US / SECOND - 1)
    assert device.pipeline.state is TRIAL
    device.wait(2)
    device.ready("2")
    assert [one.code for one in device.events("fell_back")] == ["unconfirmed"]
    assert device.pipeline.condemned_here == ()


def test_a_trial_is_not_judged_while_there_is_no_gateway_to_confirm_it() -> None:
    device = unconfirmed()
    device.play(GatewayGone())
    device.wait(10 * CONFIRMED_US / SECOND)
    assert device.pipeline.state is TRIAL
    device.connect()
    device.wait(CONFIRMED_US / SECOND - 1)
    assert device.pipeline.state is TRIAL
    device.wait(2)
    assert device.pipeline.state is FALLING


def test_a_first_install_that_is_never_confirmed_stays_and_is_unproven() -> None:
    """There is nothing to turn to: it is committed rather than left on trial for ever."""
    device = Playbook()
    device.connect()
    device.assigned(rule("1"))
    device.fetched("1")
    device.ready("1")
    device.wait(CONFIRMED_US / SECOND + 1)
    assert (device.slots, device.pipeline.state, device.pipeline.unproven) == (("1", "", ""), IDLE, True)
    assert [one.code for one in device.events("stay")] == ["unconfirmed"]


def test_a_trial_whose_manifest_cannot_be_read_any_more_does_not_last_for_ever() -> None:
    """A restart that found it damaged: nobody knows its soak, so it is left, and fetched again."""
    device = trial()
    device.start(release("1"), release("2"))
    device.connect()
    device.ready("2", "3")
    device.wait(CONFIRMED_US / SECOND + 1)
    device.ready("2")
    assert [one.code for one in device.events("fell_back")] == ["damaged-blob"]
    assert device.pipeline.condemned_here == ()
