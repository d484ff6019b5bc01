"""A release that takes the whole machine down with it: it costs one fallback, whoever restarts how often."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from holdfast_agent.core.life import STARTS_IN_TRIAL_MAX
from holdfast_agent.core.record import Activation
from holdfast_gateway.control import Status
from support.playbook import BEGAN, SECOND, Playbook, counts, release, rule, target
from support.wanted import fetches, routes

STARTS = 100


def in_trial() -> Playbook:
    """1 is the refuge, 2 serves and is confirmed."""
    device = Playbook()
    device.connect()
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device.ready("1", "2")
    return device


def boot(device: Playbook, number: int) -> None:
    """The machine starts: another boot, another gateway, a monotonic clock from nothing, and a wall clock that was lost."""
    device.own = replace(device.own, boot=f"boot-of-{number}")
    device.gateway = f"gateway-of-{number}"
    device.now = replace(device.now, at=BEGAN.at + number, monotonic_us=number % 7 * SECOND)
    device.start(release("1"), release("2"))


def test_a_boot_loop_of_a_hundred_starts_costs_one_fallback_and_settles() -> None:
    """No start goes back to what the device has left: the counter is in the record, and so is the condemnation."""
    device = in_trial()
    served = []
    for number in range(STARTS):
        boot(device, number)
        served.append(device.pipeline.serving)
        if number % 3 == 0:  # some live long enough to hear of the gateway and to be asked something
            device.connect()
            device.ready("1", "2")
            device.wait(2)
    assert served == [target("2")] * (STARTS_IN_TRIAL_MAX - 1) + [target("1")] * (STARTS - STARTS_IN_TRIAL_MAX + 1)
    assert [one.code for one in device.pipeline.condemned_here] == ["boot-loop"]
    assert [one.cause for one in device.pipeline.activations] == ["trial", "trial", "fallback"]


def test_a_gateway_that_the_release_takes_down_counts_as_the_machine_does() -> None:
    device = in_trial()
    for number in range(STARTS_IN_TRIAL_MAX):
        assert device.pipeline.state == "trial"
        device.gateway = f"gateway-again-{number}"
        device.connect()
    assert (device.pipeline.state, device.slots) == ("falling_back", ("1", "", ""))


def test_an_agent_that_is_restarted_is_not_the_releases_doing() -> None:
    """It stands beside what serves: an update of the agent, or ten, end no trial."""
    device = in_trial()
    for _ in range(10):
        device.start(release("1"), release("2"))
        device.connect()
        device.ready("1", "2")
    assert device.pipeline.state == "trial"
    device.tally(counts("2", requests=50))
    device.wait(11)
    assert device.slots == ("2", "1", "")


def test_a_machine_whose_power_fails_twice_in_a_trial_commits_all_the_same() -> None:
    device = in_trial()
    for number in range(STARTS_IN_TRIAL_MAX - 1):
        boot(device, number)
    device.connect()
    device.ready("1", "2")
    device.tally(counts("2", requests=50))
    device.wait(11)
    assert (device.slots, device.pipeline.condemned_here) == (("2", "1", ""), ())


def test_the_record_of_an_older_agent_is_no_boot() -> None:
    """An agent that is updated in a trial finds the gateway that it left: no start is counted, and its windows stay known."""
    device = in_trial()
    device.record = msgspec.structs.replace(device.record, boot="")
    gateway = device.record.gateway
    device.start(release("1"), release("2"))
    assert (device.pipeline.trial_starts, device.device.record.gateway) == (0, gateway)
    assert device.device.record.boot == device.own.boot


def test_the_next_trial_counts_from_nothing() -> None:
    device = in_trial()
    boot(device, 1)
    device.connect()
    device.ready("1", "2")
    device.tally(counts("2", requests=50))
    device.wait(11)
    device.assigned(rule("3"))
    device.to_trial("3")
    assert device.pipeline.trial_starts == 0


def test_a_boot_loop_after_the_commit_is_not_held_against_the_release() -> None:
    """It was tried and found good: a site whose power flickers must not take a fleet back."""
    device = in_trial()
    device.tally(counts("2", requests=50))
    device.wait(11)
    for number in range(STARTS):
        boot(device, number)
    assert (device.slots, device.pipeline.condemned_here) == (("2", "1", ""), ())


def test_a_release_that_crashes_wherever_it_serves_costs_one_fallback_though_it_reads_well_in_between() -> None:
    """A↔B: 2 is left for 1, and no status, document, restart or day of waiting brings it back without a retry."""
    device = in_trial()
    device.failed("2", "crash-loop", "1")
    device.ready("1")
    seen: list[Activation] = list(device.pipeline.activations)
    for number in range(20):
        boot(device, number)
        device.connect()
        device.ready("1")
        assert routes(device.status({"1": "ready", "2": "ready"})) is None
        assert fetches(device.assigned(rule("2"), rule("1"))) == []
        device.wait(3600)
    assert list(device.pipeline.activations) == seen
    assert device.said(Status(serial=device.in_force, slots=(), gateway=device.gateway)) == []
