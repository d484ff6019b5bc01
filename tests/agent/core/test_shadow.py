"""A release that shadows: it never serves, costs what serves nothing, and goes on over restarts and clocks that jump."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_agent.core import deadlines
from holdfast_agent.core.commands import Tell, VerifySlots
from holdfast_agent.core.device import Device
from holdfast_agent.core.events import GatewayGone, SlotsVerified
from holdfast_agent.core.record import decode, encode
from holdfast_gateway.control import RetryLoad, SlotStatus, Status
from support.playbook import BEGAN, SECOND, Playbook, assignment, bad, digest, own, release, rule, target
from support.wanted import fetches, garbage, routes, shadow

LATER = BEGAN.at + 400 * 86_400 * SECOND
HOUR = 3600


def shadowing() -> Playbook:
    """1 serves, and 2 shadows it. Health comes every hour: these transcripts are long."""
    device = Playbook(own_=own(health_s=HOUR))
    device.connect()
    device.serve("1")
    device.document(assignment(rule("2", "shadow"), rule("1"), seq=20, not_after=LATER))
    device.fetched("2")
    device.shadows("2")
    assert (device.pipeline.state, device.slots) == ("shadowing", ("1", "", "2"))
    return device


def restarted(device: Playbook, *, boot: str = "boot-1") -> None:
    device.own = replace(device.own, boot=boot)
    device.record = decode(encode(device.record))
    device.start(release("1"), release("2"))
    device.connect()


def test_it_is_tested_where_it_will_shadow_and_what_serves_goes_on() -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    assert fetches(device.assigned(rule("2", "shadow"), rule("1"))) == ["2"]
    told = device.fetched("2")
    assert (routes(told), shadow(told)) == (("1", "", ""), "2")
    device.shadows("2")
    assert (device.pipeline.state, device.pipeline.serving) == ("shadowing", target("1"))
    told_of = device.report()
    assert told_of.candidate is not None
    assert (told_of.state, told_of.candidate.release, told_of.candidate.ready) == (
        "shadowing",
        target("2").release,
        True,
    )
    assert device.events("activated")[1:] == []


def test_without_anything_that_serves_there_is_nothing_to_shadow() -> None:
    device = Playbook()
    device.connect()
    assert fetches(device.assigned(rule("2", "shadow"))) == []
    assert device.slots == ("", "", "")


def test_what_serves_does_not_shadow_itself() -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    assert fetches(device.assigned(rule("1", "shadow"), rule("1"))) == []
    assert device.pipeline.state == "idle"


def test_a_refuge_whose_worker_failed_is_started_again_while_another_shadows() -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    device.serve("4")
    device.assigned(rule("2", "shadow"), rule("4"))
    device.fetched("2")
    device.shadows("2")
    failed = SlotStatus(pipeline="p", target=target("1"), state="failed", code="crash-loop")
    told = device.device.gateway
    now_failed = Status(
        serial=told.serial,
        slots=(told.slots["p", target("4").key], failed),
        shadows=tuple(told.shadows.values()),
        gateway=device.gateway,
    )
    device.said(now_failed)
    assert device.pipeline.state == "shadowing"
    tells = [one.message for one in device.wait(130) if isinstance(one, Tell)]
    assert RetryLoad(target=target("1").key) in tells


def test_when_what_serves_fails_with_nothing_to_turn_to_the_shadow_gives_way() -> None:
    """Its worker is started again by an idle pipeline: an outage is not prolonged for a comparison."""
    device = shadowing()
    device.failed("1", "crash-loop")
    assert (device.pipeline.state, device.slots) == ("idle", ("1", "", ""))
    device.ready("1")
    assert fetches(device.wait(1)) in ([], ["2"])


def test_what_should_serve_comes_first_and_the_shadow_comes_back_after_it() -> None:
    device = shadowing()
    assert fetches(device.document(assignment(rule("3"), rule("2", "shadow"), rule("1"), seq=21))) == ["3"]
    assert device.slots == ("1", "", "3")
    device.to_trial("3")
    device.wait(13)
    assert device.slots[0] == "3"
    assert device.pipeline.candidate == target("2")
    device.fetched("2")
    device.shadows("2")
    assert device.pipeline.state == "shadowing"


def test_one_whose_self_test_fails_is_condemned_here_and_nothing_else_happens() -> None:
    device = shadowing()
    before = device.pipeline.current
    device.document(assignment(rule("3", "shadow"), rule("1"), seq=21))
    device.fetched("3")
    device.shadows("3", "failed", code="self-test-failed")
    assert [one.target for one in device.pipeline.condemned_here] == [target("3")]
    assert [one.code for one in device.events("self_test_failed")] == ["self-test-failed"]
    assert (device.pipeline.state, device.pipeline.current) == ("idle", before)


def test_one_that_crashes_on_and_on_is_condemned_here_told_and_never_fetched_again() -> None:
    device = shadowing()
    assert shadow(device.shadows("2", "failed", code="crash-loop")) == ""
    assert [one.target for one in device.pipeline.condemned_here] == [target("2")]
    assert [(one.code, one.release) for one in device.events("condemned_here")] == [("crash-loop", target("2").release)]
    assert device.events("self_test_failed") == []
    assert fetches(device.wait(2 * 86_400)) == []
    assert (device.pipeline.state, device.slots, len(device.pipeline.activations)) == ("idle", ("1", "", ""), 1)


def test_a_refuge_that_fails_as_a_shadow_stays_the_refuge() -> None:
    """It was good while it served: what it does at the lowest priority costs the comparison alone, which is tried again later."""
    device = Playbook()
    device.connect()
    device.serve("1")
    device.serve("4")
    device.assigned(rule("1", "shadow"), rule("4"))
    device.fetched("1")
    device.shadows("1")
    assert (device.pipeline.state, device.slots) == ("shadowing", ("4", "1", "1"))
    device.shadows("1", "failed", code="crash-loop")
    assert (device.pipeline.state, device.slots, device.pipeline.condemned_here) == ("idle", ("4", "1", ""), ())
    assert [one.code for one in device.events("fetch_failed")] == ["crash-loop"]
    assert device.pipeline.refuge == target("1")


def test_each_worker_that_it_loses_is_told_and_nobody_turns_away_from_what_serves() -> None:
    device = shadowing()
    device.shadows("2", "loading", code="crash", losses=1)
    (told,) = device.events("worker_lost")
    assert (told.code, told.release) == ("crash", target("2").release)
    assert told.detail.startswith("while it shadowed: 1 worker(s) lost")
    assert device.pipeline.state == "shadowing"


def test_one_that_memory_keeps_out_is_told_as_that_and_tried_again() -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    device.assigned(rule("2", "shadow"), rule("1"))
    device.fetched("2")
    device.shadows("2", "stopped", code="no-memory", detail="too little memory")
    assert (device.pipeline.state, device.report().waiting_for) == ("self_testing", "too little memory")
    done = device.wait(HOUR)
    assert [(one.code, one.detail) for one in device.events("fetch_failed")] == [("no-memory", "too little memory")]
    assert (fetches(done), device.pipeline.condemned_here) == (["2"], ())


def test_one_that_memory_takes_away_meanwhile_is_told_while_it_lasts() -> None:
    device = shadowing()
    device.shadows("2", "stopped", code="no-memory", detail="too little memory")
    assert (device.pipeline.state, device.report().waiting_for) == ("shadowing", "too little memory")
    device.shadows("2")
    assert (device.pipeline.state, device.report().waiting_for) == ("shadowing", "")
    assert device.events("fetch_failed") == []


def test_a_gateway_that_does_not_know_shadows_costs_a_wait_and_condemns_nothing() -> None:
    """An older one reads past `shadow` and never tells of one."""
    device = Playbook()
    device.connect()
    device.serve("1")
    device.assigned(rule("2", "shadow"), rule("1"))
    device.fetched("2")
    device.ready("1")
    patience_us = deadlines.shadow_tested_by(release("2"), BEGAN) - BEGAN.monotonic_us
    device.wait(patience_us / SECOND - 1)
    assert device.pipeline.state == "self_testing"
    device.wait(2)
    assert [one.code for one in device.events("fetch_failed")] == ["self-test-unanswered"]
    assert device.pipeline.condemned_here == ()


def test_it_goes_on_over_a_restart_of_the_agent_without_a_fetch() -> None:
    device = shadowing()
    device.own = replace(device.own, boot="boot-1")
    done = device.start(release("1"), release("2"))
    assert fetches(done) == []
    device.connect()
    assert device.device.gateway.said[-1].routes[0].shadow == target("2")
    device.shadows("2")
    assert (device.pipeline.state, device.slots) == ("shadowing", ("1", "", "2"))


def test_it_goes_on_over_a_gateway_that_ends_and_comes_back() -> None:
    device = shadowing()
    device.play(GatewayGone())
    device.wait(2 * HOUR)
    device.gateway = "gateway-2"
    device.connect()
    assert device.device.gateway.said[-1].routes[0].shadow == target("2")
    assert device.pipeline.state == "shadowing"


def test_its_hours_are_saved_and_restarts_add_to_them() -> None:
    device = shadowing()
    device.wait(5 * HOUR + 1)
    assert device.record.pipeline("p").shadowed is not None
    assert hours(device.device) == 6
    restarted(device)
    assert hours(device.device) == 7


@pytest.mark.parametrize("jump_s", [-90 * 86_400, 90 * 86_400], ids=["set back", "set forward"])
def test_a_clock_that_is_set_neither_ends_nor_prolongs_it(jump_s: int) -> None:
    """Half of the time, then the clock jumps by three months, before a restart and after it."""
    device = shadowing()
    half = deadlines.SHADOW_HOURS_MAX // 2
    device.wait(half * HOUR)
    device.now = replace(device.now, at=device.now.at + jump_s * SECOND)
    restarted(device, boot="boot-2")
    device.now = replace(device.now, at=device.now.at + jump_s * SECOND)
    device.wait((half - 3) * HOUR)
    assert device.pipeline.state == "shadowing"
    device.wait(3 * HOUR)
    assert device.pipeline.state == "idle"


def test_past_its_last_hour_it_ends_and_does_not_begin_again_while_its_rule_stands() -> None:
    device = shadowing()
    done = device.wait(deadlines.SHADOW_HOURS_MAX * HOUR + 1)
    assert (device.pipeline.state, device.slots, shadow(done)) == ("idle", ("1", "", ""), "")
    assert fetches(device.wait(10 * 86_400)) == []
    restarted(device)
    assert fetches(device.wait(86_400)) == []
    assert device.events("staged")[-1].detail == f"it has shadowed for {deadlines.SHADOW_HOURS_MAX} hours, and ends"


def test_a_rule_that_comes_back_has_all_its_time_again() -> None:
    device = shadowing()
    device.wait(10 * HOUR)
    device.document(assignment(rule("1"), seq=21, not_after=LATER))
    assert (device.pipeline.state, device.pipeline.shadowed) == ("idle", None)
    assert fetches(device.document(assignment(rule("2", "shadow"), rule("1"), seq=22, not_after=LATER))) == ["2"]
    device.fetched("2")
    device.shadows("2")
    assert hours(device.device) == 1


def test_a_document_that_condemns_it_ends_it_at_once() -> None:
    device = shadowing()
    done = device.document(assignment(rule("2", "shadow"), rule("1"), seq=21, condemned=[bad("2")]))
    assert (device.pipeline.state, shadow(done)) == ("idle", "")
    assert device.pipeline.serving == target("1")


def test_what_shadows_is_never_deleted_and_what_shadowed_is() -> None:
    device = shadowing()
    done = device.document(assignment(rule("1"), rule("9", match="ring=other"), seq=21, not_after=LATER))
    assert garbage(done)[-1] == frozenset({digest("1")})
    device = shadowing()
    restarted(device)
    kept = garbage(device.shadows("2"))
    assert all(digest("2") in keep for keep in kept)
    assert kept


def test_what_serves_is_read_again_for_rot_while_another_shadows_it() -> None:
    """Weeks go by while one shadows: bits do not wait."""
    device = shadowing()
    read = [one for one in device.wait(86_400) if isinstance(one, VerifySlots)]
    assert [one.releases for one in read] == [frozenset({digest("1")})]
    device.play(SlotsVerified(whole=frozenset({digest("1")}), damaged=frozenset(), draw=0.5))
    assert device.pipeline.state == "shadowing"


def hours(device: Device) -> int:
    found = device.record.pipeline("p").shadowed
    return found.hours if found is not None else 0
