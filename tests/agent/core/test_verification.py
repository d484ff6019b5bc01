"""Bit rot: every slot is read again from time to time, what is damaged is fetched again, and what serves goes on serving."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast_agent.core.commands import Command, Tell, VerifySlots
from holdfast_agent.core.events import SlotsVerified
from holdfast_agent.core.verification import DEADLINE_US
from holdfast_gateway.control import RetryLoad
from support.playbook import SECOND, Playbook, digest, own, release, rule, target
from support.wanted import fetches, routes

PERIOD_S = 3600


@pytest.fixture
def device() -> Playbook:
    """2 serves, 1 is its refuge."""
    found = Playbook(own_=own(verify_s=PERIOD_S))
    found.connect()
    for name in ("1", "2"):
        found.serve(name)
    found.ready("1", "2")
    return found


def readings(commands: Sequence[Command]) -> list[frozenset[str]]:
    return [command.releases for command in commands if isinstance(command, VerifySlots)]


def both() -> frozenset[str]:
    return frozenset({digest("1"), digest("2")})


def found(device: Playbook, *damaged: str, draw: float = 0.5) -> list[Command]:
    bad = frozenset(digest(name) for name in damaged)
    return device.play(SlotsVerified(whole=both() - bad, damaged=bad, draw=draw))


def due(device: Playbook) -> None:
    assert readings(device.wait(PERIOD_S + 1)) == [both()]


def test_every_slot_is_read_once_a_period_and_the_draw_spreads_it(device: Playbook) -> None:
    due(device)
    assert readings(device.wait(60)) == [], "one reading at a time"
    assert fetches(found(device, draw=0.0)) == []
    assert readings(device.wait(PERIOD_S / 2 + 1)) == [both()], "half a period at the least"
    found(device, draw=0.99)
    assert readings(device.wait(PERIOD_S)) == []
    assert readings(device.wait(PERIOD_S / 2)) == [both()], "one and a half at the most"


def test_a_fleet_that_starts_together_does_not_read_together(device: Playbook) -> None:
    for draw in (0.01, 0.5, 1.0):
        one = Playbook(record=device.record, own_=own(verify_s=PERIOD_S, verify_draw=draw))
        assert readings(one.wait(PERIOD_S * draw - 1)) == []
        assert readings(one.wait(2)) == [both()]


def test_nothing_is_read_while_something_is_under_way(device: Playbook) -> None:
    """A fetch and a trial have the disk and the processor first; it is made up for when they are over."""
    device.assigned(rule("3"))
    assert readings(device.wait(PERIOD_S + 60)) == []
    device.to_trial("3", manifest=release("3", requests_min=0))
    assert readings(device.ready("2", "3")) == []
    assert readings(device.wait(20)) == [frozenset({digest("2"), digest("3")})]


def test_a_damaged_slot_is_degraded_fetched_again_and_whole(device: Playbook) -> None:
    """No route changes and no worker is started again: what serves has its bytes in memory."""
    due(device)
    done = found(device, "2")
    (told,) = device.events("degraded")
    assert (told.code, told.release) == ("damaged-blob", target("2").release)
    assert fetches(done) == ["2"]
    assert device.reports[-1].pipelines[0].degraded
    more = device.fetched("2")
    assert routes(done + more) is None
    assert not [one for one in done + more if isinstance(one, Tell) and isinstance(one.message, RetryLoad)]
    assert device.events("staged")[-1].detail == "whole again"
    assert not device.report().degraded
    assert device.pipeline.condemned_here == ()
    assert device.slots == ("2", "1", "")
    assert fetches(device.wait(600)) == []


def test_the_refuge_is_mended_as_well(device: Playbook) -> None:
    due(device)
    assert fetches(found(device, "1", "2")) == ["2"]
    assert fetches(device.fetched("2")) == ["1"]
    assert device.report().degraded
    device.fetched("1")
    assert not device.report().degraded


def test_it_stays_degraded_over_failed_fetches_and_restarts_until_it_is_whole(device: Playbook) -> None:
    due(device)
    found(device, "2")
    device.not_fetched("2")
    assert device.report().degraded
    assert fetches(device.start(release("1"), release("2"))) == ["2"]
    device.connect()
    device.ready("1", "2")
    assert device.report().degraded
    device.fetched("2")
    assert not device.report().degraded


def test_what_reads_well_again_is_whole(device: Playbook) -> None:
    """A controller that had a bad minute: the next reading says so, with or without a server."""
    due(device)
    found(device, "2")
    while not readings(device.wait(60)):
        device.not_fetched("2", draw=0.999)
    found(device)
    assert not device.report().degraded


def test_one_damage_is_told_once(device: Playbook) -> None:
    due(device)
    found(device, "2")
    device.not_fetched("2", draw=0.999)
    for _ in range(2):
        while not readings(device.wait(60)):
            device.not_fetched("2", draw=0.999)
        found(device, "2")
    assert len(device.events("degraded")) == 1


def test_a_late_answer_and_what_no_slot_names_change_nothing(device: Playbook) -> None:
    assert fetches(found(device, "2")) == [], "nobody asked"
    due(device)
    other = frozenset({digest("9")})
    device.play(SlotsVerified(whole=frozenset(), damaged=other, draw=0.5))
    assert device.device.record.damaged == ()
    assert device.events("degraded") == []


def test_damage_of_a_slot_that_is_left_is_forgotten(device: Playbook) -> None:
    due(device)
    found(device, "1")
    device.fetched("1")
    device.wait(2 * PERIOD_S)
    found(device, "1")
    device.assigned(rule("3"))
    device.to_trial("3", manifest=release("3", requests_min=0))
    device.ready("2", "3")
    device.wait(11)
    assert (device.slots, device.device.record.damaged) == (("3", "2", ""), ())


def test_a_reading_that_is_never_answered_is_asked_for_anew(device: Playbook) -> None:
    due(device)
    assert readings(device.wait(DEADLINE_US / SECOND + 1)) == []
    assert readings(device.wait(PERIOD_S)) == [both()]


def unreadable(device: Playbook, name: str) -> list[Command]:
    whole = both() - {digest(name)}
    return device.play(
        SlotsVerified(whole=whole, damaged=frozenset(), draw=0.99, unreadable={digest(name): "Too many open files"})
    )


def test_what_cannot_be_read_is_no_damage_and_is_told_once(device: Playbook) -> None:
    """Nothing is fetched, nothing condemned; the device is degraded until somebody has read it."""
    due(device)
    assert fetches(unreadable(device, "2")) == []
    device.wait(3599)
    assert readings(device.wait(2)) == [both()], "in an hour, not in a day and a half"
    unreadable(device, "2")
    (told,) = device.events("degraded")
    assert (told.code, told.release) == ("unreadable", target("2").release)
    assert "Too many open files" in told.detail
    assert device.report().degraded
    assert device.device.record.damaged == ()
    assert fetches(found_at_last(device)) == []
    assert not device.report().degraded


def found_at_last(device: Playbook) -> list[Command]:
    while not readings(device.wait(60)):
        pass
    return found(device)


def failing_to_fetch() -> Playbook:
    """2 serves, 1 is its refuge, and 3, which should serve, failed so often that it waits for hours."""
    device = Playbook(own_=own(verify_s=PERIOD_S))
    device.connect()
    for name in ("1", "2"):
        device.serve(name)
    device.ready("1", "2")
    device.assigned(rule("3"), rule("2"))
    for attempt in range(12):
        device.not_fetched("3", draw=0.99)
        device.wait(10 * 2**attempt)
    device.not_fetched("3", draw=0.99)
    assert device.pipeline.state == "idle"
    return device


def test_a_slot_is_mended_while_what_should_serve_waits() -> None:
    """A release that cannot be fetched must not leave the only good slot damaged for a day, nor lose its own wait by it."""
    device = failing_to_fetch()
    attempts = device.pipeline.attempts
    assert fetches(device.failed("1", "damaged-blob", "2")) == ["1"]
    device.fetched("1")
    device.ready("1", "2")
    assert device.pipeline.attempts == attempts
    assert fetches(device.wait(600)) == []
    assert "failed 13 time(s)" in device.report().waiting_for


def test_both_slots_are_mended_while_something_stands_in_the_way() -> None:
    """One that cannot be fetched does not keep the other waiting; each waits by itself, over restarts too."""
    device = failing_to_fetch()
    assert device.device.verification.until_us is not None, "they are being read just now"
    assert fetches(found(device, "1", "2")) == ["2"]
    assert fetches(device.not_fetched("2", draw=0.9)) == ["1"]
    assert fetches(device.not_fetched("1", draw=0.1)) == []
    device.start(release("1"), release("2"))
    assert fetches(device.wait(1)) == ["1"]


def test_what_should_serve_goes_before_a_repair_once_it_need_not_wait() -> None:
    device = failing_to_fetch()
    device.failed("1", "damaged-blob", "2")
    assert fetches(device.assigned(rule("4"), rule("2"))) == ["stop", "4"]
    device.to_trial("4")


def test_a_slot_that_rots_again_and_again_waits_longer_until_it_is_read_whole(device: Playbook) -> None:
    waits = []
    for _ in range(3):
        device.failed("1", "damaged-blob", "2")
        began = device.now.monotonic_us
        while device.pipeline.state != "fetching":
            device.wait(1)
        waits.append((device.now.monotonic_us - began) // SECOND)
        device.fetched("1")
        device.ready("1", "2")
    assert waits[0] == 0
    assert 0 < waits[1] < waits[2]
    found_at_last(device)
    assert device.pipeline.repairs == ()
    assert fetches(device.failed("1", "damaged-blob", "2")) == ["1"]


def test_a_worker_that_cannot_read_its_bytes_condemns_nothing_and_fetches_nothing(device: Playbook) -> None:
    """A machine without a free descriptor: the device falls back, and the release comes back from its own disk."""
    assert fetches(device.failed("2", "unreadable", "1")) == []
    assert device.pipeline.serving == target("1")
    assert device.pipeline.condemned_here == ()
    assert fetches(device.ready("1")) == ["2"]
    device.fetched("2")
    device.to_trial("2")
    assert device.pipeline.serving == target("2")
