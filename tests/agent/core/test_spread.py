"""A rule's spread: each device begins at its own moment of it, once, whatever is restarted or set."""

from __future__ import annotations

import msgspec

from holdfast_agent.core import spread
from holdfast_agent.core.events import Moment
from holdfast_shared.wire.assignment import Rule
from support.playbook import SECOND, Playbook, bad, release, rule, target
from support.wanted import fetches

SPREAD_S = 3_600
OFFSET_S = spread.offset_s(target("2"), "d-1", SPREAD_S)


def spread_out(name: str, spread_s: int = SPREAD_S, **fields: int) -> Rule:
    return msgspec.structs.replace(rule(name), spread_s=spread_s, **fields)


def serving() -> Playbook:
    device = Playbook()
    device.connect()
    device.serve("1")
    return device


def test_devices_are_spread_over_all_of_it_each_where_it_always_is() -> None:
    offsets = [spread.offset_s(target("2"), f"device-{number}", SPREAD_S) for number in range(600)]
    assert 0 <= min(offsets) < 60
    assert SPREAD_S - 60 < max(offsets) < SPREAD_S
    assert offsets == [spread.offset_s(target("2"), f"device-{number}", SPREAD_S) for number in range(600)]
    assert OFFSET_S > 120, "the tests below need a device that waits"


def test_a_device_begins_at_its_moment_and_says_meanwhile_what_it_waits_for() -> None:
    device = serving()
    assert fetches(device.assigned(spread_out("2"), rule("1"))) == []
    assert "3600 s over which the rule spreads its devices" in device.report().waiting_for
    waited_s = 61
    assert fetches(device.wait(OFFSET_S - waited_s - 1)) == []
    assert fetches(device.wait(2)) == ["2"]


def test_a_newer_document_and_a_restart_do_not_begin_it_anew() -> None:
    device = serving()
    device.assigned(spread_out("2"), rule("1"))
    device.wait(OFFSET_S - 60)
    device.assigned(spread_out("2"), rule("1"))
    device.start(release("1"))
    device.connect()
    device.ready("1")
    assert fetches(device.wait(50)) == []
    assert fetches(device.wait(20)) == ["2"]


def test_a_clock_that_is_set_back_makes_nobody_wait_longer_than_the_whole() -> None:
    device = serving()
    device.assigned(spread_out("2"), rule("1"))
    device.now = Moment(at=device.now.at - 10 * 86_400 * SECOND, monotonic_us=device.now.monotonic_us)
    assert fetches(device.wait(OFFSET_S + 1)) == ["2"]
    again = serving()
    again.assigned(spread_out("2"), rule("1"))
    again.now = Moment(at=again.now.at - 10 * 86_400 * SECOND, monotonic_us=again.now.monotonic_us)
    again.start(release("1"))
    again.connect()
    again.ready("1")
    assert fetches(again.wait(OFFSET_S + 1)) == ["2"]


def test_what_is_urgent_begins_at_once() -> None:
    device = serving()
    assert fetches(device.assigned(spread_out("2"), condemned=[bad("1")])) == ["2"]


def test_it_is_counted_from_when_the_rule_may_begin_at_all() -> None:
    device = serving()
    later = device.now.at + 600 * SECOND
    device.assigned(spread_out("2", not_before=later), rule("1"))
    assert fetches(device.wait(600 + OFFSET_S - 2)) == []
    assert fetches(device.wait(70)) == ["2"]  # that time has come is seen at the next health report


def test_another_spread_is_another_moment_from_the_same_beginning() -> None:
    device = serving()
    device.assigned(spread_out("2"), rule("1"))
    device.wait(60)
    shorter = spread.offset_s(target("2"), "d-1", 600)
    device.assigned(spread_out("2", 600), rule("1"))
    assert fetches(device.wait(max(shorter - 60, 0) + 1)) == ["2"]
