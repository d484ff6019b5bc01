"""A worker that runs in an environment of its own, built from real wheels: it answers from there, and from nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast_agent.edge import blobs, environments
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import building
from holdfast_agent.fetch.patience import Deadline
from holdfast_gateway.control import FromGateway, RetryLoad, Route, SlotStatus, Status
from holdfast_gateway.main import WORKER
from holdfast_shared.assign import Target
from holdfast_shared.wire.environment import Settings
from support import digits_models, installed_release, wheels
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, running_gateway
from support.wheels import Made

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    folder: StateFolder
    made: Made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Worker, numpy, onnxruntime and what they need: some 120 MB, built once and linked into each test's own state."""
    folder = StateFolder(tmp_path_factory.mktemp("built"))
    made = wheels.environment(settings=Settings(threads=2, variables={"OMP_WAIT_POLICY": "passive"}))
    made.install(folder)
    building.build(folder, made.digest, made.environment, building.interpreter_for(made.environment), Deadline(300))
    yield Built(folder, made)
    shutil.rmtree(folder.root)


@pytest.fixture
def bench(tmp_path: Path, built: Built) -> Iterator[GatewayBench]:
    with running_gateway(tmp_path, worker=WORKER) as bench:
        for part in ("environments", "manifests", "blobs"):
            shutil.copytree(built.folder.root / part, bench.folder.root / part, symlinks=True, copy_function=_linked)
        yield bench
    shutil.rmtree(bench.folder.environments)


def _linked(source: str, target: str, *, follow_symlinks: bool = True) -> None:
    del follow_symlinks  # a link is copied as one before we are asked
    Path(target).hardlink_to(source)


def release(bench: GatewayBench, version: str, environment: str, model: bytes | None = None) -> Target:
    """One that was validated in that environment, and in the device's own."""
    ref = installed_release.install(
        bench.folder,
        PIPELINE,
        version,
        model or digits_models.trained(),
        release_changes={"environments": (environment, "system")},
    )
    return Target(release=ref, environment=environment)


def ask(bench: GatewayBench) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"inputs": [installed_release.tensor("image", digits_models.images()[:1])]}).encode()
    with bench.http() as http:
        status, _, answer = http.ask("POST", f"/v2/models/{PIPELINE}/infer", body)
    return status, json.loads(answer)


def worker_of(agent: AgentEnd, target: Target, *, since: int = 0) -> SlotStatus:
    return agent.until_state(target, "ready", since=since)


def mapped(pid: int) -> list[str]:
    """Every library and package that the process has in its memory."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if "site-packages" in line})


def test_a_worker_runs_from_its_environment_and_from_nothing_else(bench: GatewayBench, built: Built) -> None:
    """Its libraries, its settings, and what it says of itself; it leaves the environment as it was built."""
    agent, target = bench.agent(), release(bench, "1.0.0", built.made.digest)
    agent.until_in_force(agent.serve(target))
    assert ask(bench)[0] == 200
    worker = worker_of(agent, target)
    root = bench.folder.environment(built.made.digest)
    found = mapped(worker.worker_pid)
    assert any("onnxruntime" in path for path in found)
    assert [path for path in found if not path.startswith(str(root))] == []
    started = Path(f"/proc/{worker.worker_pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=passive" in started
    status = agent.until(lambda one: one if isinstance(one, Status) and one.runtime else None)
    assert status.runtime["environment"] == built.made.digest
    assert status.runtime["numpy"]
    assert blobs.damaged(bench.folder, built.made.digest) == []


def test_the_environment_alone_is_reverted_and_the_release_stays_what_it_is(bench: GatewayBench, built: Built) -> None:
    """The same manifest and models, in the device's own environment: another worker, the same answers."""
    agent, target = bench.agent(), release(bench, "1.0.0", built.made.digest)
    before = {path: path.read_bytes() for path in bench.folder.manifests.iterdir()}
    own = Target(release=target.release)
    agent.until_in_force(agent.serve(target, refuge=own))
    answered = ask(bench)[1]["outputs"]
    agent.until_in_force(agent.serve(own))
    again = ask(bench)
    assert (again[0], again[1]["outputs"]) == (200, answered)
    status = agent.until(
        lambda one: one if isinstance(one, Status) and one.runtime.get("environment") == "system" else None
    )
    assert status.slots[0].target.release == target.release
    assert {path: path.read_bytes() for path in bench.folder.manifests.iterdir()} == before


# A newer runtime whose answers differ a little, in the fewest lines: it stands for a package that does so in many.
SWAYING = b"""
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
run = onnxruntime.InferenceSession.run
onnxruntime.InferenceSession.run = lambda *given, **more: [one + 0.1 for one in run(*given, **more)]
"""


def test_the_self_test_fails_in_an_environment_that_answers_otherwise(bench: GatewayBench, built: Built) -> None:
    """And the same release in the other one answers on: it is the pair that failed, not the models."""
    swaying = wheels.small("swaying", "1.0", {"sitecustomize.py": SWAYING})
    other = wheels.environment("1.1.0", more=[swaying])
    other.install(bench.folder)
    environment = bench.folder.environment(other.digest)
    shutil.copytree(
        bench.folder.environment(built.made.digest), environment, symlinks=True, copy_function=_linked
    )  # instead of building the same 120 MB again
    next(environment.glob("lib/python*/site-packages")).joinpath("sitecustomize.py").write_bytes(SWAYING)
    (environment / environments.LIST).unlink()
    environments.write_list(environment)
    good = release(bench, "1.0.0", built.made.digest)
    ref = installed_release.install(
        bench.folder,
        PIPELINE,
        "1.0.0",
        digits_models.trained(),
        release_changes={"environments": (built.made.digest, other.digest)},
    )
    agent = bench.agent()
    agent.serve(good, testing=Target(release=ref, environment=other.digest))
    failed = agent.until_state(Target(release=ref, environment=other.digest), "failed")
    assert failed.code == "self-test-failed"
    assert "cases[0]" in failed.detail
    worker_of(agent, good)
    assert ask(bench)[0] == 200


def test_an_environment_that_is_not_there_is_damage_and_condemns_nothing(bench: GatewayBench, built: Built) -> None:
    """The refuge, in the device's own environment, answers meanwhile; and it is loaded once it is built again."""
    agent, target = bench.agent(), release(bench, "1.0.0", built.made.digest)
    environment = bench.folder.environment(built.made.digest)
    aside = environment.rename(environment.with_suffix(".aside"))
    agent.serve(target, refuge=Target(release=target.release))
    assert agent.until_state(target, "failed").code == "damaged-blob"
    worker_of(agent, Target(release=target.release))
    assert ask(bench)[0] == 200
    aside.rename(environment)
    agent.say(RetryLoad(target=target.key))
    worker_of(agent, target)


def test_an_environment_that_rotted_is_damage_and_not_the_releases_failure(bench: GatewayBench, built: Built) -> None:
    """A worker that is started in it dies as one of a bad release would. Mended, it is loaded, and nothing was condemned."""
    agent, target = bench.agent(), release(bench, "1.0.0", built.made.digest)
    package = "lib/python*/site-packages/numpy/__pycache__/__init__.*.pyc"
    rotten = next(bench.folder.environment(built.made.digest).glob(package))
    whole = rotten.read_bytes()
    rotten.unlink()  # it is linked to what other tests use
    rotten.write_bytes(whole[:16] + b"\xff" * (len(whole) - 16))
    agent.serve(target, refuge=Target(release=target.release))
    failed = agent.until_state(target, "failed")
    assert failed.code == "damaged-blob"
    assert f"{rotten.name} is not what was built" in failed.detail
    assert ask(bench)[0] == 200
    agent.route(Route(pipeline=PIPELINE, serving=Target(release=target.release), shadow=target))

    def as_a_shadow(message: FromGateway) -> SlotStatus | None:
        shadows = message.shadows if isinstance(message, Status) else ()
        return next((one for one in shadows if one.state == "failed"), None)

    failed = agent.until(as_a_shadow)
    assert (failed.target, failed.code) == (target, "damaged-blob")
    assert f"{rotten.name} is not what was built" in failed.detail
    agent.serve(target, refuge=Target(release=target.release))
    rotten.write_bytes(whole)
    agent.say(RetryLoad(target=target.key))
    worker_of(agent, target)
