"""Bad releases that pass everything that is checked offline, and how a rollout of each ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from demonstration.fleet import Device
from support import digits_models
from support.small_fleet import SmallFleet, device, mixed_images, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD = "1.0.0"
CANARIES = [device(f"camera-{number}") for number in (1, 2, 3)]
BYSTANDER = device("bystander", canary=False)


class Bad(NamedTuple):
    version: str
    model: Callable[[], bytes]
    metric: str


BREACHES = {
    "NaN on some images": Bad("1.1.0", digits_models.nan_on_some, "null_rate"),
    "raises on some images": Bad("1.2.0", digits_models.raises_on_some, "error_rate"),
    "takes long over some images": Bad("1.3.0", lambda: digits_models.slow_on_some(250), "latency_ms_p99"),
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    """Three canaries of one region that serve a good release, and one device beside the ring."""
    with small_fleet([*CANARIES, BYSTANDER]) as started:
        started.publish(GOOD, digits_models.trained())
        with started.application():
            started.roll_out(GOOD)
        yield started


@pytest.mark.parametrize("bad", BREACHES.values(), ids=BREACHES.keys())
def test_a_breached_gate_halts_the_rollout_and_takes_the_release_back(fleet: SmallFleet, bad: Bad) -> None:
    """Halted by that gate alone; back by the server's document, not the device's own decision; no request fails.

    Its guardrails only report, so a real worker's real answers are all that breaches. The second wave is never released, so
    the device beside the ring never has it.
    """
    fleet.publish(bad.version, bad.model(), action='"report"', deadline_ms="20000")
    with fleet.application(images=mixed_images()) as applications:
        rollout = fleet.start_rollout(bad.version, "100% ring=canary", "100%")
        halted = fleet.wait_for_rollout(rollout, "halted")
        for one in fleet.devices:
            fleet.wait_until_serving(one, GOOD)
        fleet.seen(
            "every device that served it is reported back",
            lambda: fleet.server.get("rollouts", rollout)["devices_back"] == len(halted["returned"]),
        )
        for application in applications:
            fleet.more_requests(application, 5)

    assert halted["waves"][0]["state"] == "failed"
    verdicts = {gate["metric"]: gate["verdict"] for gate in halted["waves"][0]["gates"]}
    assert [metric for metric, verdict in verdicts.items() if verdict == "fail"] == [bad.metric], halted["cause"]
    assert bad.metric in halted["cause"]
    assert not [failure for application in applications for failure in application.failures]
    assert {version for application in applications for version in application.versions} == {GOOD, bad.version}
    had_it = [one for one in CANARIES if bad.version in _activated(fleet, one)]
    assert len(had_it) >= 2, "two failing devices are the least that halts"
    for one in had_it:
        told = fleet.events(one, "rolled_back", "fell_back", "condemned_here")
        assert [(event.kind, event.code) for event in told if event.version == bad.version] == [
            ("rolled_back", "condemned")
        ]
        assert fleet.slots(one).activations[-1].cause == "rollback"
        assert bad.version not in {version for version, _ in _condemned(fleet, one)}
    assert _activated(fleet, BYSTANDER) == {GOOD}


def _activated(fleet: SmallFleet, one: Device) -> set[str]:
    return {entry.target.release.version for entry in fleet.slots(one).activations}


class Left(NamedTuple):
    """A release that devices leave by themselves, and the code that they give."""

    version: str
    model: Callable[[], bytes]
    golden: Callable[[], bytes]
    code: str
    activated: bool


LEFT = {
    "answers its golden cases otherwise": Left(
        "1.4.0", digits_models.trained, lambda: digits_models.trained(0.5), "self-test-failed", activated=False
    ),
    "never answers some images": Left(
        "1.5.0", digits_models.hangs_on_some, digits_models.hangs_on_some, "hang-loop", activated=True
    ),
}


@pytest.mark.parametrize("bad", LEFT.values(), ids=LEFT.keys())
def test_a_release_that_devices_leave_by_themselves_halts_its_rollout(fleet: SmallFleet, bad: Left) -> None:
    """Each condemns it here, and that is evidence enough; what fails its self-test never answers a request."""
    fleet.publish(bad.version, bad.model(), golden=bad.golden(), action='"report"', deadline_ms="500")
    with fleet.application(*CANARIES, images=mixed_images()) as applications:
        rollout = fleet.start_rollout(bad.version, "100% ring=canary", "100%")
        halted = fleet.wait_for_rollout(rollout, "halted")
        for one in CANARIES:
            fleet.wait_until_serving(one, GOOD)
    assert bad.code in halted["cause"]
    (left,) = [gate for gate in halted["waves"][0]["gates"] if gate["metric"] == "device"]
    assert left["codes"].keys() == {bad.code}
    assert not [failure for application in applications for failure in application.failures]
    answered = {version for application in applications for version in application.versions}
    assert answered == ({GOOD, bad.version} if bad.activated else {GOOD})
    condemning = [one for one in CANARIES if (bad.version, bad.code) in _condemned(fleet, one)]
    assert len(condemning) >= 2
    assert all((bad.version in _activated(fleet, one)) == bad.activated for one in condemning)
    assert _activated(fleet, BYSTANDER) == {GOOD}


def _condemned(fleet: SmallFleet, one: Device) -> set[tuple[str, str]]:
    return {(entry.target.release.version, entry.code) for entry in fleet.slots(one).condemned_here}
