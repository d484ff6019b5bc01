"""A rule that gives its release a share of the requests, or a segment of them: a trial that lasts until the decision changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import pytest

from holdfast_agent.core import life
from holdfast_agent.core import record as records
from holdfast_agent.core.commands import Command, Tell
from holdfast_agent.core.events import RollbackAsked
from holdfast_agent.core.record import State
from holdfast_gateway.control import RetryLoad, Routes
from holdfast_shared import selector
from holdfast_shared.wire.assignment import Mode, Requests, Rule
from support import two_pipelines
from support.playbook import PIPELINE, Playbook, bad, counts, release, rule, target
from support.wanted import fetches, routes

FIVE: Final = Requests(share=500)
TWENTY: Final = Requests(share=2_000)
BETA: Final = Requests(share=10_000, segment=selector.parse("tier=beta"))
ALL: Final = Requests(share=10_000)


def some(name: str, requests: Requests = FIVE, mode: Mode = "serve") -> Rule:
    return msgspec.structs.replace(rule(name, mode), requests=requests)


def shared(commands: Sequence[Command]) -> Requests | None:
    """The requests of the candidate by the routes that were last told; fails when none were."""
    told = [one.message for one in commands if isinstance(one, Tell) and isinstance(one.message, Routes)]
    return next(route.requests for route in told[-1].routes if route.pipeline == PIPELINE)


def serving() -> Playbook:
    device = Playbook()
    device.connect()
    device.serve("1")
    device.serve("2")
    return device


def on_trial(requests: Requests = FIVE) -> Playbook:
    """2 serves, and 3 is on trial with a share."""
    device = serving()
    device.assigned(some("3", requests), rule("2"))
    device.to_trial("3")
    device.ready("2", "3")
    return device


@pytest.mark.parametrize("requests", [FIVE, BETA, ALL])
def test_it_is_on_trial_with_those_requests_and_is_never_committed(requests: Requests) -> None:
    device = serving()
    device.assigned(some("3", requests), rule("2"))
    device.fetched("3")
    said = device.ready("2", "3")
    assert (routes(said), shared(said)) == (("3", "2", ""), requests)
    device.ready("2", "3")
    device.tally(counts("3", requests=500))
    device.wait(6 * 3600)
    assert (device.pipeline.state, device.slots) == (State.TRIAL, ("2", "1", "3"))
    assert [one.release for one in device.events("activated")][-1] == target("3").release
    assert device.report().requests == requests


def test_a_changed_share_changes_no_slot() -> None:
    device = on_trial()
    activations = device.pipeline.activations
    said = device.assigned(some("3", TWENTY), rule("2"))
    assert (routes(said), shared(said)) == (("3", "2", ""), TWENTY)
    assert fetches(said) == []
    assert shared(device.assigned(some("3", BETA), rule("2"))) == BETA
    assert device.pipeline.activations == activations
    assert device.pipeline.requests == BETA
    assert len([one for one in device.events("activated") if one.release == target("3").release]) == 1


def test_a_newer_document_with_the_same_share_changes_nothing() -> None:
    device = on_trial()
    said = device.assigned(some("3"), rule("2"))
    assert routes(said) is None


def test_given_all_requests_it_soaks_from_then_on_and_is_committed() -> None:
    device = on_trial()
    device.wait(3600)
    device.tally(counts("3", requests=500))
    said = device.assigned(rule("3"))
    assert (routes(said), shared(said)) == (("3", "2", ""), None)
    device.wait(9)
    assert device.pipeline.state is State.TRIAL
    device.wait(2)
    assert (device.pipeline.state, device.slots) == (State.IDLE, ("3", "2", ""))
    assert [one.code for one in device.events("committed")][-1] == ""
    assert device.pipeline.requests is None


def test_a_restart_of_the_agent_keeps_the_share_and_the_soak_that_follows_it() -> None:
    device = on_trial()
    device.wait(3600)
    manifests = (release("1"), release("2"), release("3"))
    device.start(*manifests)
    said = device.connect()
    assert (routes(said), shared(said)) == (("3", "2", ""), FIVE)
    device.assigned(rule("3"))  # before the gateway confirms anything
    device.ready("2", "3")
    device.wait(9)
    assert device.slots == ("2", "1", "3")
    device.wait(4)
    assert device.slots == ("3", "2", "")


def test_an_ordinary_trial_may_become_one_of_a_share() -> None:
    device = serving()
    device.assigned(rule("3"), rule("2"))
    device.to_trial("3")
    device.ready("2", "3")
    assert shared(device.assigned(some("3"), rule("2"))) == FIVE
    device.wait(3600)
    assert device.pipeline.state is State.TRIAL


@pytest.mark.parametrize("after", [[rule("2")], []], ids=["another release", "no rule"])
def test_it_is_dropped_when_no_rule_gives_it_anything(after: list[Rule]) -> None:
    """Without a rule it is not kept either: none says that it may have all requests."""
    device = on_trial()
    said = device.assigned(*after)
    assert (routes(said), shared(said)) == (("2", "1", ""), None)
    assert (device.pipeline.state, device.slots, device.pipeline.requests) == (State.IDLE, ("2", "1", ""), None)


def test_a_pause_keeps_it_with_its_share() -> None:
    device = on_trial()
    assert routes(device.assigned(some("3", FIVE, "keep"), rule("2"))) is None
    device.wait(3600)
    assert (device.pipeline.state, device.pipeline.requests) == (State.TRIAL, FIVE)


def test_a_breach_of_its_own_counts_ends_it() -> None:
    device = on_trial()
    said = device.tally(counts("3", requests=40, nulls=20))
    assert (routes(said), shared(said)) == (("2", "1", ""), None)
    device.ready("2")
    assert [one.code for one in device.events("fell_back")] == ["guardrail-null-rate"]
    assert (device.slots, device.pipeline.requests) == (("2", "1", ""), None)
    device.wait(3600)
    assert (device.pipeline.state, device.slots) == (State.IDLE, ("2", "1", ""))


def test_a_breach_of_what_answers_the_other_requests_is_told_once_and_ends_nothing() -> None:
    device = on_trial()
    device.tally(counts("2", requests=40, nulls=20))
    device.tally(counts("2", requests=80, nulls=40))
    assert [(one.code, one.release) for one in device.events("guardrail")] == [
        ("guardrail-null-rate", target("2").release)
    ]
    assert (device.pipeline.state, device.pipeline.requests) == (State.TRIAL, FIVE)


def test_a_crash_loop_a_condemnation_and_a_person_end_it() -> None:
    crashed, condemned, by_hand = on_trial(), on_trial(), on_trial()
    crashed.failed("3", "crash-loop", "2")
    condemned.assigned(some("3"), rule("2"), condemned=[bad("3")])
    by_hand.play(RollbackAsked(pipeline=PIPELINE, target=target("3")))
    for device in (crashed, condemned, by_hand):
        assert (device.pipeline.state, device.slots) == (State.FALLING_BACK, ("2", "1", ""))
        assert device.pipeline.requests is None


def booted(device: Playbook, boot: str) -> None:
    device.own = replace(device.own, boot=boot)
    device.start(release("1"), release("2"), release("3"))
    device.connect()
    device.ready("2", "3")


def test_a_machine_that_starts_again_and_again_ends_it() -> None:
    device = on_trial()
    for number in range(life.STARTS_IN_TRIAL_MAX):
        assert device.pipeline.state is State.TRIAL
        booted(device, f"again-{number}")
    assert [one.code for one in device.events("fell_back")] == ["boot-loop"]
    assert device.slots == ("2", "1", "")


def test_starts_that_each_stood_a_soak_are_no_loop() -> None:
    """In the weeks that such a trial may last a machine starts now and then."""
    device = on_trial()
    for number in range(3 * life.STARTS_IN_TRIAL_MAX):
        booted(device, f"monday-{number}")
        device.wait(11)
        assert (device.pipeline.state, device.pipeline.trial_starts) == (State.TRIAL, 0)


def test_a_first_install_waits_for_a_rule_without_a_share() -> None:
    device = Playbook()
    device.connect()
    assert fetches(device.assigned(some("1"))) == []
    assert "no release is here that could answer the others" in device.report().waiting_for
    assert fetches(device.assigned(rule("1"))) == ["1"]


def test_a_share_given_during_a_first_trial_is_not_kept() -> None:
    """There is nothing else here that could answer the others: it serves all, and is committed as any other."""
    device = Playbook()
    device.connect()
    device.assigned(rule("1"))
    device.to_trial("1")
    device.assigned(some("1"))
    device.tally(counts("1", requests=50))
    device.wait(11)
    assert (device.pipeline.state, device.slots) == (State.IDLE, ("1", "", ""))


def test_what_is_committed_is_not_given_a_share_any_more() -> None:
    device = serving()
    said = device.assigned(some("2"), rule("1"))
    assert (routes(said), device.slots) == (None, ("2", "1", ""))


def test_a_condemned_release_answers_no_share() -> None:
    """The candidate answers all that there is, and is not committed for it. What was before stands in, and gets no share."""
    device = on_trial()
    said = device.assigned(some("3"), rule("2"), condemned=[bad("2")])
    assert (routes(said), shared(said)) == (("3", "1", ""), None)
    device.wait(3600)
    assert (device.pipeline.state, device.pipeline.requests) == (State.TRIAL, FIVE)
    saved = records.decode(records.encode(device.record)).pipelines[PIPELINE]
    assert (saved.refuge, saved.shared) == (target("1"), None), "a gateway that starts alone reads no document"
    assert shared(device.assigned(some("3"), rule("2"))) == FIVE
    assert (device.record.pipelines[PIPELINE].refuge, device.record.pipelines[PIPELINE].shared) == (target("2"), FIVE)


def test_a_refuge_that_a_document_condemns_is_none_for_a_gateway_that_starts_alone_either() -> None:
    device = serving()
    said = device.assigned(rule("2"), condemned=[bad("1")])
    assert routes(said) == ("2", "", "")
    assert device.record.pipelines[PIPELINE].refuge is None


def test_what_is_urgent_does_not_wait_for_a_share() -> None:
    """What serves is condemned, and nothing else is here: the release takes all requests, at once."""
    device = Playbook()
    device.connect()
    device.serve("1")
    assert fetches(device.assigned(some("3"), condemned=[bad("1")])) == ["3"]
    device.fetched("3")
    device.ready("1", "3")
    device.ready("3")
    assert (device.slots, device.pipeline.state, device.pipeline.requests) == (("3", "", ""), State.IDLE, None)


def test_superseded_with_nothing_to_turn_to_it_is_committed_so_that_the_next_may_come() -> None:
    device = on_trial()
    device.failed("2", "load-failed", "3")
    device.tally(counts("3", requests=50))
    device.assigned(rule("4"))
    device.wait(12)
    assert (device.slots[0], device.pipeline.state, device.pipeline.requests) == ("3", State.FETCHING, None)


def test_the_other_slot_is_started_again_when_it_failed() -> None:
    device = on_trial()
    device.failed("2", "load-failed", "3")
    said = [one.message for one in device.wait(130) if isinstance(one, Tell)]
    assert RetryLoad(target=target("2").key) in said
    assert device.pipeline.state is State.TRIAL


def test_another_pipeline_waits_until_what_it_requires_answers_all_requests() -> None:
    """Of two versions that answer both count: what requires the newer would meet the older nearly always."""
    device = two_pipelines.both_served(two_pipelines.NEWER_Q)
    device.q_assigned(some("6"), rule("5"))
    device.q_to_trial("6", "1")
    device.assigned(rule("2"), rule("1"))
    device.fetched("2")
    device.ready("1", "2")
    assert (device.pipeline.state, device.both) == (State.STAGED, ("1", "6"))
    assert device.report().waiting_for == "p 1.2.0 requires q from 1.6.0; 1.5.0 serves here"
    device.q_assigned(rule("6"))
    device.ready("1", "2")
    device.ready("1", "2")
    assert (device.pipeline.state, device.both) == (State.TRIAL, ("2", "6"))


def test_a_record_from_before_there_were_shares_is_read() -> None:
    device = on_trial()
    now = records.encode(device.record)
    assert records.decode(now).pipelines[PIPELINE].requests == FIVE
    before = msgspec.json.decode(now)
    del before["pipelines"][PIPELINE]["requests"]
    assert records.decode(msgspec.json.encode(before)).pipelines[PIPELINE].requests is None
