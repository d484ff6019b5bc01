"""What releases of two pipelines require of each other holds at every switch: forward waits for it, back takes along."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast_agent.core import deadlines
from holdfast_agent.core.commands import Command, Save
from holdfast_agent.core.events import RollbackAsked
from holdfast_agent.core.record import State
from holdfast_shared.wire.assignment import Rule
from support.playbook import BEGAN, PIPELINE, SECOND, assignment, bad, counts, release, rule, target
from support.two_pipelines import NEWER_Q, Q, TwoPipelines, both_newer, both_on_trial, both_served, requires
from support.wanted import fetches


def saved(commands: list[Command]) -> list[tuple[str, str]]:
    """(p, q) of every save, as their activations say."""
    return [
        (
            save.record.pipeline(PIPELINE).activations[-1].target.release.version,
            save.record.pipeline(Q).activations[-1].target.release.version,
        )
        for save in commands
        if isinstance(save, Save)
    ]


# ---------------------------------------------------------------- forward
def test_a_release_waits_where_it_is_staged_until_the_other_pipeline_has_what_it_requires() -> None:
    """It is fetched all the same, so that it goes forward at once; and what it waits for is reported."""
    device = both_served(NEWER_Q)
    assert fetches(device.assigned(rule("2"), rule("1"))) == ["2"]
    device.fetched("2")
    device.wait(3600)
    assert (device.pipeline.state, device.both) == (State.STAGED, ("1", "5"))
    assert device.report().waiting_for == "p 1.2.0 requires q from 1.6.0; 1.5.0 serves here"
    device.q_assigned(rule("6"))
    device.q_to_trial("6", "1")
    device.ready("1", "2")
    device.ready("1", "2")
    assert (device.pipeline.state, device.both) == (State.TRIAL, ("2", "6"))


def test_a_pipeline_that_is_not_here_meets_no_requirement() -> None:
    device = TwoPipelines(NEWER_Q)
    device.assigned(rule("2"))
    device.fetched("2")
    assert device.pipeline.state is State.STAGED
    assert device.report().waiting_for == "p 1.2.0 requires q from 1.6.0; it does not serve here"


def test_a_release_that_another_pipeline_would_not_bear_waits_for_that_one() -> None:
    """q may not leave the versions that p requires until p has moved."""
    device = both_served({"1": requires(Q, "5", "6")})
    device.q_assigned(rule("6"), rule("5"))
    device.q_fetched("6")
    device.wait(100)
    assert (device.q.state, device.both) == (State.STAGED, ("1", "5"))
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device.q_workers["6"] = "ready"
    device.ready("1", "2")
    device.ready("1", "2")
    assert device.both == ("2", "6")


def test_what_changed_during_the_self_test_is_asked_again_before_it_serves() -> None:
    device = both_served(NEWER_Q)
    device.q_serve("6", "1")
    device.assigned(rule("2"), rule("1"))
    device.fetched("2")
    assert device.pipeline.state == "self_testing"
    device.q_tally("6", nulls=40)
    device.ready("1", "2")
    assert device.both == ("1", "5")
    device.wait((deadlines.self_tested_by(release("2"), BEGAN) - BEGAN.monotonic_us) / SECOND + 1)
    assert device.pipeline.state == "idle"
    assert device.events("fetch_failed")[-1].code == "held-up"
    assert device.pipeline.condemned_here == ()


def test_what_was_unmet_before_holds_up_nobody_else() -> None:
    """p serves what requires more of q than q has, after what served there was condemned: q may still move."""
    device = both_served({"2": requires(Q, "7")})
    device.assigned(rule("2"), condemned=[bad("1")])
    device.to_idle("2")
    device.q_assigned(rule("6"), rule("5"))
    device.q_to_trial("6", "2")
    assert device.both == ("2", "6")


def test_what_serves_being_condemned_nothing_waits_for_a_requirement() -> None:
    """Nothing is worse than what serves; that the requirement is not met is told."""
    device = both_served(NEWER_Q)
    device.assigned(rule("2"), condemned=[bad("1")])
    device.to_idle("2")
    assert device.both == ("2", "5")
    assert [(one.pipeline, one.code) for one in device.events("stay")][-1] == (PIPELINE, "requirement-unmet")


# ---------------------------------------------------------------- back
def test_a_pipeline_that_falls_back_takes_along_the_one_that_requires_what_it_left() -> None:
    """Both in one save, and neither is blamed for the other: what was taken along is not condemned, and waits to return."""
    device = both_newer()
    done = device.q_tally("6", nulls=40)
    assert saved(done) == [("1.1.0", "1.5.0")]
    assert device.both == ("1", "5")
    device.ready("1")
    (fell,), (taken,) = device.events("fell_back"), device.events("rolled_back")
    assert (fell.pipeline, fell.code) == (Q, "guardrail-null-rate")
    assert (taken.pipeline, taken.code, taken.release) == (PIPELINE, "requirement-unmet", target("2").release)
    assert taken.detail == "q goes back to 1.5.0"
    assert device.pipeline.condemned_here == ()
    device.fetched("2")
    device.wait(100)
    assert (device.pipeline.state, device.both) == (State.STAGED, ("1", "5"))
    assert device.events("stay") == []


def test_a_trial_that_fails_takes_along_the_trial_that_relied_on_it() -> None:
    device = both_on_trial()
    assert saved(device.q_tally("6", nulls=40)) == [("1.1.0", "1.5.0")]
    assert device.both == ("1", "5")


def test_going_back_to_a_release_that_requires_an_older_one_takes_that_pipeline_back_too() -> None:
    device = _crossing()
    device.tally(counts("2", requests=50, nulls=40))
    assert device.both == ("1", "5")
    device.ready("1")
    assert [(one.pipeline, one.code) for one in device.events("rolled_back")] == [(Q, "requirement-unmet")]


def _crossing() -> TwoPipelines:
    """1 requires q below 6, though q went to 6 when 2 served: their refuges fit each other."""
    device = both_served({"1": requires(Q, "5", "6")})
    device.serve("2")
    device.q_serve("6", "2")
    assert device.both == ("2", "6")
    return device


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda device: device.q_assigned(rule("5"), condemned=[bad("6")]), id="by a document"),
        pytest.param(lambda device: device.play(RollbackAsked(pipeline=Q, target=target("6"))), id="by hand"),
        pytest.param(lambda device: device.q_tally("6", nulls=40), id="by itself"),
    ],
)
def test_however_it_is_left_the_other_goes_along(leave: Callable[[TwoPipelines], list[Command]]) -> None:
    assert saved(leave(both_newer())) == [("1.1.0", "1.5.0")]


def test_a_trial_that_is_superseded_takes_along_what_relied_on_it() -> None:
    device = both_on_trial()
    assert saved(device.q_assigned(rule("5")))[-1] == ("1.1.0", "1.5.0")


def test_with_nothing_to_go_back_to_the_one_goes_back_alone_and_it_is_told_once() -> None:
    """A requirement never keeps a bad release serving."""
    device = TwoPipelines(NEWER_Q)
    device.q_serve("5")
    device.q_serve("6")
    device.serve("2")
    device.q_tally("6", nulls=40)
    assert device.both == ("2", "5")
    device.wait(3600)
    (told,) = device.events("stay")
    assert (told.pipeline, told.code) == (PIPELINE, "requirement-unmet")
    assert told.detail == "p 1.2.0 requires q from 1.6.0; 1.5.0 serves here"


def test_a_refuge_that_is_condemned_is_no_place_to_be_taken_to() -> None:
    device = both_newer()
    device.document(assignment(rule("2"), seq=50, condemned=[bad("1")]))
    device.q_tally("6", nulls=40)
    assert device.both == ("2", "5")


def test_a_refuge_whose_worker_failed_is_no_place_to_be_taken_to() -> None:
    """To go along would take down what answers: what is unmet is told instead."""
    device = both_newer()
    device.failed("1", "crash-loop", "2")
    device.q_tally("6", nulls=40)
    assert device.both == ("2", "5")
    device.ready("2")
    assert ("p", "requirement-unmet") in [(one.pipeline, one.code) for one in device.events("stay")]


def test_being_taken_along_is_told_though_the_agent_was_restarted_meanwhile() -> None:
    device = both_newer()
    device.q_tally("6", nulls=40)
    device.start(device.manifest("1"), device.manifest("5"))
    device.connect()
    device.ready("1")
    device.wait(5)
    assert [(one.pipeline, one.code) for one in device.events("rolled_back")] == [(PIPELINE, "requirement-unmet")]


def test_removing_a_pipeline_stops_nothing_that_required_it() -> None:
    device = both_newer()
    device.q_assigned(Rule(mode="remove"))
    assert device.both == ("2", "")
    assert [one.code for one in device.events("stay")] == ["requirement-unmet"]
