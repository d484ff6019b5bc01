"""Bit rot while a trial of a share lasts, which may be for weeks: what rotted is mended beside it, and the trial goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import pytest

from holdfast_agent.core.commands import Command, StopFetch, Tell, VerifySlots
from holdfast_agent.core.deadlines import FETCH_US
from holdfast_agent.core.events import SlotsVerified
from holdfast_agent.core.record import State
from holdfast_gateway.control import RetryLoad
from holdfast_shared.wire.assignment import Requests, Rule
from support import two_pipelines
from support.playbook import SECOND, Playbook, bad, counts, digest, own, release, rule, target
from support.wanted import fetches, routes

FIVE: Final = Requests(share=500)
PERIOD_S: Final = 7200
HELD: Final = frozenset(digest(name) for name in "123")


def some(name: str) -> Rule:
    return msgspec.structs.replace(rule(name), requests=FIVE)


def found(device: Playbook, *damaged: str) -> list[Command]:
    """The slots are due to be read, and the bytes of these do not verify."""
    asked = [one for one in device.wait(PERIOD_S * 2) if isinstance(one, VerifySlots)]
    assert [one.releases for one in asked] == [HELD]
    rotted = frozenset(digest(name) for name in damaged)
    return device.play(SlotsVerified(whole=HELD - rotted, damaged=rotted, draw=0.5))


@pytest.fixture
def device() -> Playbook:
    """2 serves, 1 is its refuge, and 3 is on trial with a share."""
    one = Playbook(own_=own(verify_s=PERIOD_S))
    one.connect()
    for name in "12":
        one.serve(name)
    one.assigned(some("3"), rule("2"))
    one.to_trial("3")
    one.ready("2", "3")
    return one


def goes_on(device: Playbook) -> None:
    pipeline = device.pipeline
    assert (pipeline.state, device.slots, pipeline.requests) == (State.TRIAL, ("2", "1", "3"), FIVE)


@pytest.mark.parametrize("rotted", ["1", "2", "3"])
def test_a_slot_that_rotted_is_degraded_until_it_was_fetched_again_and_the_trial_goes_on(
    device: Playbook, rotted: str
) -> None:
    activations = device.pipeline.activations
    said = found(device, rotted)
    assert (fetches(said), routes(said)) == ([rotted], None)
    assert device.report().degraded
    goes_on(device)
    assert routes(device.fetched(rotted)) is None
    assert not device.report().degraded
    assert [one.detail for one in device.events("staged")][-1] == "whole again"
    device.wait(3600)
    goes_on(device)
    assert device.pipeline.activations == activations


def test_one_after_the_other(device: Playbook) -> None:
    assert fetches(found(device, "1", "2")) == ["2"]
    assert fetches(device.fetched("2")) == ["1"]
    assert fetches(device.fetched("1")) == []
    assert not device.report().degraded


def test_one_that_cannot_be_fetched_is_tried_again_and_over_restarts(device: Playbook) -> None:
    found(device, "2")
    assert fetches(device.not_fetched("2")) == []
    assert device.events("fetch_failed")[-1].release == target("2").release
    goes_on(device)
    assert fetches(device.wait(3600)) == ["2"]
    device.not_fetched("2")
    assert fetches(device.start(*(release(name) for name in "123"))) == []
    device.connect()
    device.ready("2", "3")
    assert fetches(device.wait(3600)) == ["2"]
    assert fetches(device.start(*(release(name) for name in "123"))) == ["2"]
    device.fetched("2")
    device.connect()
    device.ready("2", "3")
    assert not device.report().degraded
    goes_on(device)


def test_a_fetch_that_never_ends_is_given_up_and_the_trial_goes_on(device: Playbook) -> None:
    found(device, "2")
    done = device.wait(FETCH_US / SECOND + 1)
    assert any(isinstance(one, StopFetch) for one in done)
    assert device.events("fetch_failed")[-1].code == "fetch-too-slow"
    goes_on(device)


def test_what_answers_the_others_is_started_again_once_its_bytes_are_whole(device: Playbook) -> None:
    """Its worker was started anew and found the damage; the candidate answers all meanwhile."""
    assert fetches(device.failed("2", "damaged-blob", "3")) == ["2"]
    goes_on(device)
    said = [one.message for one in device.fetched("2") if isinstance(one, Tell)]
    assert RetryLoad(target=target("2").key) in said
    device.ready("2", "3")
    assert not device.report().degraded
    goes_on(device)


def stopped(commands: Sequence[Command]) -> bool:
    return any(isinstance(one, StopFetch) for one in commands)


def test_the_trial_ends_as_ever_while_a_slot_is_mended(device: Playbook) -> None:
    """What is damaged is still fetched, by the state that follows."""
    found(device, "2")
    assert stopped(device.assigned(some("3"), rule("2"), condemned=[bad("3")]))
    assert (device.pipeline.state, device.slots) == (State.FALLING_BACK, ("2", "1", ""))
    assert fetches(device.ready("2", "1")) == ["2"]
    device.fetched("2")
    assert (device.pipeline.state, device.report().degraded) == (State.IDLE, False)


def test_given_all_requests_it_soaks_and_is_committed_and_then_the_slot_is_mended(device: Playbook) -> None:
    found(device, "2")
    device.tally(counts("3", requests=500))
    assert stopped(device.assigned(rule("3")))
    assert device.pipeline.state is State.TRIAL
    done = device.wait(11)
    assert (device.pipeline.state, device.slots[:2], fetches(done)) == (State.FETCHING, ("3", "2"), ["2"])


def test_a_slot_that_reads_well_after_all_is_not_fetched_any_longer(device: Playbook) -> None:
    said = found(device, "2")
    while not any(isinstance(one, VerifySlots) for one in said):
        if fetches(said):
            device.not_fetched("2")
        said = device.wait(600)
    device.play(SlotsVerified(whole=HELD, damaged=frozenset(), draw=0.5))
    assert not device.report().degraded
    assert fetches(device.wait(24 * 3600)) == []
    goes_on(device)


def test_a_start_of_the_machine_is_still_forgiven_after_the_soak(device: Playbook) -> None:
    """The soak has a deadline of its own, which a fetch beside it does not take away."""
    device.own = replace(device.own, boot="another")
    device.start(*(release(name) for name in "123"))
    device.connect()
    device.failed("2", "damaged-blob", "3")
    device.ready("2", "3")
    assert device.pipeline.trial_starts == 1
    device.failed("2", "damaged-blob", "3")
    device.fetched("2")
    device.wait(11)
    assert device.pipeline.trial_starts == 0
    goes_on(device)


def test_a_download_that_cannot_wait_goes_first() -> None:
    """Another pipeline serves what is condemned: the mending stops, and goes on afterwards."""
    device = two_pipelines.both_served({})
    device.assigned(some("3"), rule("1"))
    device.to_trial("3")
    assert fetches(device.failed("1", "damaged-blob", "3")) == ["1"]
    assert fetches(device.q_assigned(rule("6"), condemned=[bad("5")])) == ["stop", "6"]
    assert device.pipeline.state is State.TRIAL
    assert fetches(device.q_fetched("6")) == ["1"]
    device.fetched("1")
    device.ready("1", "3")
    assert (device.pipeline.state, device.report().degraded) == (State.TRIAL, False)
