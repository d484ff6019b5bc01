"""A device with neither server nor broker: it protects itself, goes on serving, and tells everything later."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Final

import psutil
import pytest

from demonstration.fleet import Device
from holdfast_shared.wire.report import Event, Report
from support import digits_models
from support.small_fleet import SmallFleet, device, inked_images, mixed_images, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD, NEW = "1.0.0", "1.1.0"
BREACHING, CRASHING, HANGING = device("breaching"), device("crashing"), device("hanging")
# The demo's releases ask for an answer within so long; what takes longer hangs.
DEADLINE_S: Final = 2.0
# The fourth loss within a minute is a crash loop.
LOSSES: Final = 4
# A device that was alone for long waits up to a minute before it tries the broker again.
BACK_S: Final = 100.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    """Three devices that serve a release which breaks on some images, and keep a good one; nobody sent such an image yet."""
    with small_fleet([BREACHING, CRASHING, HANGING]) as started:
        started.publish(GOOD, digits_models.trained())
        started.publish(NEW, digits_models.nan_on_some())
        with started.application():
            started.roll_out(GOOD)
            started.roll_out(NEW)
        yield started


@pytest.fixture
def alone(fleet: SmallFleet) -> SmallFleet:
    fleet.cut_off()
    return fleet


def test_a_breach_falls_back_and_stays_so_after_a_restart(alone: SmallFleet) -> None:
    """By the release's own guardrail; the agent that is started again knows it still. No request fails."""
    with alone.application(BREACHING, images=mixed_images()) as (application,):
        alone.wait_until_serving(BREACHING, GOOD)
        fallen = alone.slots(BREACHING)
        boots = alone.record(BREACHING).boots
        alone.processes.kill(f"agent-{BREACHING.id}")
        alone.start_agent(BREACHING)
        alone.seen("the agent started again", lambda: alone.record(BREACHING).boots > boots)
        alone.more_requests(application, 40)
    assert [(one.target.release.version, one.code) for one in fallen.condemned_here] == [(NEW, "guardrail-null-rate")]
    assert fallen.activations[-1].cause == "fallback"
    assert alone.slots(BREACHING).condemned_here == fallen.condemned_here
    assert alone.slots(BREACHING).activations == fallen.activations
    assert alone.answering(BREACHING) == GOOD
    assert not application.failures
    assert {GOOD, NEW} == application.versions.keys()


def test_a_worker_that_dies_again_and_again_is_given_up_for_the_other_release(alone: SmallFleet) -> None:
    """The refuge serves, from the very process that stood by, and the release is condemned here. No request fails."""
    refuge, *_ = alone.workers(CRASHING)
    with alone.application(CRASHING, images=inked_images()) as (application,):
        for _ in range(LOSSES):
            alone.seen("the new release answers", lambda: alone.answering(CRASHING) == NEW)
            (victim,) = [one for one in alone.workers(CRASHING) if one != refuge]
            victim.kill()
            psutil.wait_procs([victim], timeout=DEADLINE_S)
        alone.wait_until_serving(CRASHING, GOOD)
        alone.more_requests(application, 20)
    assert [(one.target.release.version, one.code) for one in alone.slots(CRASHING).condemned_here] == [
        (NEW, "crash-loop")
    ]
    assert alone.workers(CRASHING) == [refuge]
    assert not application.failures


def test_a_worker_that_hangs_costs_no_request(alone: SmallFleet) -> None:
    """The request that it does not answer within its deadline is answered by the other slot; the worker is replaced."""
    refuge, hung = alone.workers(HANGING)
    assert alone.answering(HANGING) == NEW
    hung.send_signal(signal.SIGSTOP)
    asked = time.monotonic()
    answer = alone.ask(HANGING, digits_models.inked_images()[0])
    took_s = time.monotonic() - asked
    assert (answer.status, answer.body["model_version"], answer.body["id"]) == (200, GOOD, "7")
    assert took_s >= DEADLINE_S * 0.9
    alone.seen("another worker of the same release answers", lambda: alone.answering(HANGING) == NEW)
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE
    assert alone.workers(HANGING)[0] == refuge
    assert alone.ask(HANGING, digits_models.inked_images()[0]).body["model_version"] == NEW
    assert not alone.slots(HANGING).condemned_here, "one hang is no reason to give a release up"


def test_what_happened_meanwhile_is_told_in_full_once_the_broker_is_back(alone: SmallFleet) -> None:
    """Every report that waited on the disk, each event once and in its order; also when the agent was killed meanwhile."""
    _lose_a_worker(alone, HANGING)
    alone.processes.kill(f"agent-{HANGING.id}")
    waiting = {one: alone.spooled(one) for one in alone.devices}
    alone.reconnect()
    alone.start_agent(HANGING)
    for one, reports in waiting.items():
        _arrive_in_full(alone, one, reports)
    assert "worker_lost" in [event.kind for event in alone.events(HANGING)]


def _arrive_in_full(fleet: SmallFleet, one: Device, reports: list[Report]) -> None:
    numbers = {report.number for report in reports}
    what = f"{len(numbers)} reports of {one.id} arrive"
    fleet.seen(what, lambda: numbers <= fleet.reports_seen(one), within_s=BACK_S)
    told = [(event.number, event.kind, event.code) for event in fleet.events(one) if event.number in numbers]
    assert told == [(report.number, event.kind, event.code) for report in reports for event in report.events]
    fleet.seen(f"{one.id} forgets them", lambda: not numbers & {report.number for report in fleet.spooled(one)})


def _lose_a_worker(fleet: SmallFleet, one: Device) -> None:
    """Until the agent has put it on its disk."""

    def lost() -> list[Event]:
        return [event for report in fleet.spooled(one) for event in report.events if event.kind == "worker_lost"]

    before = len(lost())
    fleet.workers(one)[-1].kill()
    fleet.seen("the loss is on the disk", lambda: len(lost()) > before)
    fleet.seen("another worker answers", lambda: fleet.answering(one) == NEW)
