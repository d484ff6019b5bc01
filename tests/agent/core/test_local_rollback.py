"""A rollback that somebody asks for on the device itself: at once, without a network, reported, and it holds."""

from __future__ import annotations

import pytest

from holdfast_agent.core import departure
from holdfast_agent.core.commands import Command
from holdfast_agent.core.events import GatewayGone, RollbackAsked
from support.playbook import PIPELINE, Playbook, bad, release, retry, rule, target
from support.wanted import fetches, routes


def asked(device: Playbook, name: str, why: str = "it flickers") -> list[Command]:
    return device.play(RollbackAsked(pipeline=PIPELINE, target=target(name), detail=why))


def serving_two() -> Playbook:
    """2 serves, 1 is previous."""
    device = Playbook()
    device.connect()
    device.serve("1")
    device.serve("2")
    return device


def test_what_serves_is_condemned_here_and_previous_serves_at_once() -> None:
    """Told with the code and the reason when the gateway confirms it; nothing is fetched."""
    device = serving_two()
    done = asked(device, "2")
    began_us = device.now.monotonic_us
    assert routes(done) == ("1", "", "")
    assert fetches(done) == []
    assert (device.slots, device.pipeline.single) == (("1", "", ""), True)
    assert [(one.target, one.code) for one in device.pipeline.condemned_here] == [(target("2"), "local-rollback")]
    assert device.pipeline.activations[-1].cause == "rollback"
    device.wait(0.01)
    device.ready("1")
    (event,) = device.events("rolled_back")
    assert (event.release, event.code, event.detail) == (target("2").release, "local-rollback", "it flickers")
    assert event.began_monotonic_us == began_us
    assert event.at_monotonic_us == device.now.monotonic_us
    assert [one.code for one in device.events("condemned_here")] == ["local-rollback"]
    assert [one.code for one in device.report().condemned_here] == ["local-rollback"]


def test_it_holds_against_every_document_that_wants_the_release_back_but_a_higher_attempt() -> None:
    device = serving_two()
    asked(device, "2")
    device.ready("1")
    assert fetches(device.assigned(rule("2"))) == []
    assert fetches(device.assigned(rule("2"), rule("1"), retries=[retry("2", 0)])) == []
    device.start(release("1"))
    device.connect()
    assert fetches(device.wait(100)) == [], "nor after a restart"
    assert fetches(device.assigned(rule("2"), rule("1"), retries=[retry("2", 1)])) == ["2"]


def test_what_a_document_names_next_still_goes_forward() -> None:
    device = serving_two()
    asked(device, "2")
    device.ready("1")
    assert fetches(device.assigned(rule("3"))) == ["3"]


def test_in_a_trial_it_returns_to_current_and_keeps_previous() -> None:
    device = serving_two()
    device.assigned(rule("3"))
    device.to_trial("3")
    device.ready("2", "3")
    assert routes(asked(device, "3")) == ("2", "1", "")
    assert device.slots == ("2", "1", "")


def test_a_download_under_way_is_stopped_and_begun_anew() -> None:
    device = serving_two()
    assert fetches(device.assigned(rule("3"))) == ["3"]
    assert fetches(asked(device, "2")) == ["stop"]
    assert fetches(device.ready("1")) == ["3"]


def test_without_a_gateway_it_is_recorded_and_told_when_it_is_back() -> None:
    device = serving_two()
    device.play(GatewayGone())
    asked(device, "2")
    assert device.record.pipelines[PIPELINE].serving == target("1")
    device.connect()
    device.ready("1")
    assert [one.code for one in device.events("rolled_back")] == ["local-rollback"]


def test_an_agent_restarted_before_the_gateway_confirmed_tells_it_all_the_same() -> None:
    device = serving_two()
    device.play(GatewayGone())
    asked(device, "2")
    device.start(release("1"))
    device.connect()
    device.ready("1")
    assert [(one.release, one.code) for one in device.events("rolled_back")] == [
        (target("2").release, "local-rollback")
    ]


def refused(device: Playbook, name: str) -> str:
    """Nothing at all changes; the reason in words."""
    before = device.device.record
    assert asked(device, name) == []
    assert device.device.record == before
    return departure.no_rollback(device.device, PIPELINE, target(name))


def test_asked_twice_it_happens_once() -> None:
    device = serving_two()
    asked(device, "2")
    assert refused(device, "2") == "p serves 1.1.0 by now, not 1.2.0"


def test_with_no_other_release_the_device_stays_and_condemns_nothing() -> None:
    device = Playbook()
    device.connect()
    assert refused(device, "1") == "p serves nothing here"
    device.serve("1")
    assert refused(device, "1") == "there is no other release of p on this device"


@pytest.mark.parametrize("why", ["is condemned", "failed"])
def test_to_nothing_that_is_condemned_or_has_failed(why: str) -> None:
    device = serving_two()
    if why == "failed":
        device.failed("1", "crash-loop", "2")
    else:
        device.assigned(rule("2"), condemned=[bad("1")])
    assert refused(device, "2") == f"1.1.0 {why}"
