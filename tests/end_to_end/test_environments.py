"""An environment from a publisher's folder to a device that runs in it, and back out of it; the release stays what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import worker_wheel
from demonstration.digits import PIPELINE
from demonstration.processes import Missed
from holdfast_shared.assign import Target
from support import digits_models, wheels
from support.small_fleet import SmallFleet, device, files_of, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CAMERA = device("camera-1")
VERSION = "1.0.0"
# What is built is 120 MB, on a machine that others use, too.
BUILT_S = 240.0
WATCHED = ("--soak", "1", "--requests-min", "40", "--deadline", str(int(BUILT_S)))


class Named(NamedTuple):
    old: str
    new: str


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    with small_fleet([CAMERA]) as started:
        yield started


@pytest.fixture(scope="module")
def environments(fleet: SmallFleet) -> Named:
    """Two versions of one: the same runtime, and one more package in the newer."""
    digests = []
    for version, more in (("1.0.0", ()), ("1.1.0", (wheels.small("tidy", "1.0", {"tidy/__init__.py": b"A = 1\n"}),))):
        folder = fleet.folder / "environments" / version
        folder.mkdir(parents=True)
        worker_wheel.build(folder)
        for wheel in (*(wheels.packed(name) for name in (*wheels.WORKER_NEEDS, "onnxruntime")), *more):
            (folder / wheel.filename).write_bytes(wheel.content)
        (folder / "environment.toml").write_text(
            f'name = "onnx-cpu"\nversion = "{version}"\nrequires_python = ">=3.11"\n[settings]\nthreads = 2\n'
        )
        digests.append(str(fleet.operator.run("mira", "environment", "publish", str(folder))["digest"]))
    named = Named(*digests)
    fleet.publish(
        VERSION,
        digits_models.trained(),
        description=f'"Of a test."\nenvironments = ["{named.old}", "{named.new}", "system"]',
    )
    return named


def roll_out(fleet: SmallFleet, *words: str) -> None:
    """To its end, however long the building takes."""
    planned = fleet.operator.run(
        "anna", "rollout", "plan", PIPELINE, VERSION, "--wave", "100%", *WATCHED, *words, "--start"
    )
    state = ""

    def ended() -> bool:
        nonlocal state
        state = str(fleet.server.get("rollouts", planned["id"])["state"])
        return state != "running"

    fleet.seen(f"{planned['id']} has ended", ended, within_s=BUILT_S)
    assert state == "finished", fleet.server.get("rollouts", planned["id"])["cause"]


def serving(fleet: SmallFleet) -> Target:
    found = fleet.slots(CAMERA).serving
    assert found is not None
    return found


def packages_of(process: psutil.Process) -> set[str]:
    """Where everything that it has loaded from a package lies."""
    return {str(Path(one.path)) for one in process.memory_maps() if "site-packages" in one.path}


def test_a_device_builds_the_environment_that_its_rule_names_and_runs_in_it(
    fleet: SmallFleet, environments: Named
) -> None:
    """Published, rolled out, fetched, built, self-tested, tried and committed, all by the shipped processes."""
    with fleet.application() as applications:
        roll_out(fleet)
        fleet.more_requests(applications[0], 10)
    assert serving(fleet).environment == environments.old
    root = fleet.layout(CAMERA).environment(environments.old)
    (worker,) = fleet.workers(CAMERA)
    loaded = packages_of(worker)
    assert any("onnxruntime" in path for path in loaded)
    assert [path for path in loaded if not path.startswith(str(root))] == []
    reported = fleet.server.get("devices", CAMERA.id)
    assert [one["serving"]["environment"] for one in reported["pipelines"]] == [environments.old]
    assert reported["fingerprint"]["environment"] == environments.old


def test_the_environment_alone_goes_forward_and_back(fleet: SmallFleet, environments: Named) -> None:
    """No digest of the release changes, no request fails, and the way back fetches nothing: its slot is there."""
    before = serving(fleet).release
    with fleet.application() as applications:
        roll_out(fleet, "--environment", "onnx-cpu@1.1.0")
        assert serving(fleet) == Target(release=before, environment=environments.new)
        files = files_of(fleet.layout(CAMERA).root / "blobs")
        done = fleet.operator.run(
            "anna", "rollback", PIPELINE, VERSION, "--environment", "onnx-cpu@1.1.0", "--reason", "slower on cameras",
            "--approve-key", str(fleet.provisioned.key("ben")),
        )  # fmt: skip
        assert (done["to"], done["to_environment"]) == (VERSION, environments.old)
        fleet.seen("it is back", lambda: serving(fleet).environment == environments.old)
        fleet.seen("it says so", lambda: fleet.server.get("rollbacks", done["id"])["devices_back"] == 1)
        fleet.more_requests(applications[0], 10)
    assert serving(fleet) == Target(release=before, environment=environments.old)
    assert not [failure for application in applications for failure in application.failures]
    assert files_of(fleet.layout(CAMERA).root / "blobs").items() <= files.items(), "nothing was fetched"
    told = [event.code for event in fleet.events(CAMERA, "rolled_back")]
    assert told == ["condemned"]


def test_an_environment_that_nothing_may_run_in_is_left(fleet: SmallFleet, environments: Named) -> None:
    """Condemned without a release, for this version and each to come; this one goes on in the device's own."""
    before = serving(fleet)
    assert before.environment == environments.old
    bad = ("--environment", "onnx-cpu@1.0.0")
    with fleet.application() as applications:
        done = fleet.operator.run(
            "anna", "rollback", PIPELINE, VERSION, *bad, "--every-version", "--reason", "leaks",
            "--approve-key", str(fleet.provisioned.key("ben")),
        )  # fmt: skip
        assert (done["every_version"], done["to_environment"]) == (True, "system")
        fleet.seen("it is out of it", lambda: serving(fleet).environment == "system")
        fleet.seen("it says so", lambda: fleet.server.get("rollbacks", done["id"])["devices_back"] == 1)
        fleet.more_requests(applications[0], 10)
    assert serving(fleet).release == before.release
    assert not [failure for application in applications for failure in application.failures]
    assert [event.code for event in fleet.events(CAMERA, "rolled_back")][-1] == "condemned"
    fleet.publish("1.1.0", digits_models.trained(), description=f'"Of a test."\nenvironments = ["{environments.old}"]')
    with pytest.raises(Missed, match="condemned"):
        fleet.operator.run("anna", "rollout", "plan", PIPELINE, "1.1.0", "--wave", "100%", *WATCHED)
