"""A restart, at any point: the record alone is the whole recovery story."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_agent.core import record
from holdfast_agent.core.commands import Save
from support.playbook import BEGAN, SECOND, Playbook, bad, counts, digest, release, rule, target
from support.wanted import fetches, garbage


@pytest.fixture
def device() -> Playbook:
    playbook = Playbook()
    playbook.connect()
    return playbook


def restarted(device: Playbook, *names: str) -> None:
    device.start(*(release(name) for name in names))


def test_work_under_way_begins_anew(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    device.fetched("2")
    assert fetches(device.start(release("1"))) == ["2"]
    assert (device.pipeline.state, device.slots) == ("fetching", ("1", "", "2"))


def test_a_trial_goes_on_and_keeps_its_deadline(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    device.to_trial("2")
    device.ready("1", "2")
    device.wait(6)
    restarted(device, "1", "2")
    assert device.pipeline.state == "trial"
    device.connect()
    assert device.device.gateway.said[-1].routes[0].serving == target("2")
    device.ready("1", "2")
    device.tally(counts("2", requests=30))
    device.wait(4.1)
    assert device.slots == ("2", "1", "")


def test_a_clock_that_was_set_back_cannot_prolong_a_trial_past_its_soak(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.to_trial("1")
    device.now = BEGAN
    restarted(device, "1")
    device.connect()
    device.ready("1")
    device.tally(counts("1", requests=30))
    device.wait(10.1)
    assert device.slots[0] == "1"


def test_a_trial_that_ended_meanwhile_hears_of_a_breach_before_it_commits(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device.wait(5)
    device._to(device.now.monotonic_us + 3600 * SECOND)
    restarted(device, "1", "2")
    device.connect()
    device.ready("1", "2")
    device.wait(1)
    assert device.pipeline.state == "trial"
    device.tally(counts("2", requests=40, nulls=40))
    assert device.slots == ("1", "", "")


def test_a_trial_that_ended_meanwhile_is_not_committed_by_the_first_word_of_the_gateway(device: Playbook) -> None:
    """Counts that are enough come before the breach that they hide: for a moment it is heard out."""
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device._to(device.now.monotonic_us + 3600 * SECOND)
    restarted(device, "1", "2")
    device.connect()
    device.ready("1", "2")
    device.tally(counts("2", requests=40))
    device.wait(1)
    assert device.pipeline.state == "trial"
    device.tally(counts("2", requests=80, nulls=40))
    assert device.slots == ("1", "", "")


def test_a_fallback_under_way_is_told_after_the_restart(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device.ready("1", "2")
    device.tally(counts("2", requests=40, nulls=40))
    restarted(device, "1")
    device.connect()
    device.ready("1")
    (event,) = device.events("fell_back")
    assert (event.code, event.release, event.began_monotonic_us) == ("guardrail-null-rate", target("2").release, None)
    assert device.pipeline.state == "idle"


def test_a_rollback_under_way_is_told_after_the_restart(device: Playbook) -> None:
    device.serve("1")
    device.serve("2")
    device.assigned(rule("1"), condemned=[bad("2")])
    restarted(device, "1")
    device.connect()
    device.ready("1")
    assert [one.release for one in device.events("rolled_back")] == [target("2").release]


def test_documents_and_local_condemnations_outlive_a_restart(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.fetched("2")
    device.failed("2", "self-test-failed", "1")
    assert fetches(device.start(release("1"))) == []
    assert device.device.documents_of("p")[0].seq == 2
    assert fetches(device.wait(1000)) == []


def test_a_backoff_outlives_a_restart(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.not_fetched("1", draw=0.9)
    assert fetches(device.start()) == []
    assert fetches(device.wait(4)) == ["1"]


def test_a_clock_set_back_cannot_stretch_a_backoff_past_a_day(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.not_fetched("1", draw=0.9)
    device.now = replace(device.now, at=1)
    device.start()
    assert fetches(device.wait(86_400)) == ["1"]


def test_no_report_number_and_no_routes_serial_is_used_twice(device: Playbook) -> None:
    device.serve("1")
    serials = [device.device.gateway.serial]
    for _ in range(5):
        for _ in range(3):
            device.wait(61)
        restarted(device, "1")
        device.connect()
        serials.append(device.device.gateway.serial)
    numbers = [one.number for one in device.reports]
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)
    assert serials == sorted(set(serials)), "what an earlier run said must never be taken for what this one wants"


def test_a_restart_deletes_only_what_nothing_names_and_not_before_the_gateway_serves_it(device: Playbook) -> None:
    """Until then it may serve, and load again, what was recorded before."""
    device.serve("1")
    device.serve("2")
    device.assigned(rule("2", standby="4"))
    assert garbage([*device.start(release("1"), release("2")), *device.connect()]) == []
    assert garbage(device.ready("1", "2")) == [frozenset({digest("1"), digest("2"), digest("4")})]


def test_a_record_reads_back_as_it_was_written(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), condemned=[bad("3")])
    assert record.decode(record.encode(device.record)) == device.record


def test_the_record_says_how_often_the_agent_started(device: Playbook) -> None:
    done = device.start()
    assert isinstance(done[0], Save)
    assert done[0].record.boots == 2
