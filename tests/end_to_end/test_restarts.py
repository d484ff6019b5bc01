"""A rollout under way, while everything that carries it is killed in turn: it ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from support import digits_models
from support.small_fleet import SmallFleet, device, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD, NEW = "1.0.0", "1.1.0"
CANARY: Final = device("camera-1")
OTHERS: Final = [device(f"camera-{number}", canary=False) for number in (2, 3)]


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    with small_fleet([CANARY, *OTHERS]) as started:
        started.publish(GOOD, digits_models.trained())
        started.publish(NEW, digits_models.trained(0.5))
        with started.application():
            started.roll_out(GOOD)
        yield started


def server_is_killed(fleet: SmallFleet) -> None:
    fleet.processes.kill("server")
    fleet.start_server()


def broker_is_killed(fleet: SmallFleet) -> None:
    """It forgets everything, retained documents too."""
    fleet.processes.kill("mosquitto")
    fleet.start_broker()


def agents_are_killed(fleet: SmallFleet) -> None:
    for one in fleet.devices:
        fleet.processes.kill(f"agent-{one.id}")
        fleet.start_agent(one)


def test_a_rollout_outlives_whatever_is_killed_under_it(fleet: SmallFleet) -> None:
    """Server, broker and agents by SIGKILL while a wave is out: every wave is released once, and no request fails."""
    with fleet.application(*OTHERS) as applications:
        rollout = fleet.start_rollout(NEW, "100% ring=canary", "100%")
        for happens in (server_is_killed, broker_is_killed, agents_are_killed):
            happens(fleet)
            fleet.wait_for_report(CANARY)
            assert fleet.server.get("rollouts", rollout)["state"] == "running", "nobody asks the canary yet"
        with fleet.application(CANARY) as (at_canary,):
            finished = fleet.wait_for_rollout(rollout, "finished")
        for one in fleet.devices:
            fleet.wait_until_serving(one, NEW)
            fleet.wait_until_in_step(one)
    assert [wave["state"] for wave in finished["waves"]] == ["passed", "passed"]
    decided = [one["what"] for one in fleet.server.get("decisions", after=0)["decisions"] if one["subject"] == rollout]
    assert [what for what in decided if "released" in what] == [
        "rollout started; wave 1 of 2 released",
        "wave 1 passed; wave 2 of 2 released",
    ]
    assert decided[-1] == "rollout finished"
    assert not [failure for application in (*applications, at_canary) for failure in application.failures]
    for one in fleet.devices:
        served = [entry.target.release.version for entry in fleet.slots(one).activations]
        assert served == [GOOD, NEW], "each activated once, whatever was started again"
        assert not fleet.slots(one).condemned_here
