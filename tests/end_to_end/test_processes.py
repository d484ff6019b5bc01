"""Agent, fetch, gateway and workers are processes of their own: each dies alone, and the small ones stay small."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest

from support import digits_models
from support.small_fleet import SmallFleet, device, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD, NEW = "1.0.0", "1.1.0"
CAMERA: Final = device("camera-1")
# What only a worker, or nobody on a device, may load. `tuf` is not there yet, and must not come in by the way.
HEAVY: Final = (
    "numpy",
    "onnxruntime",
    "tuf",
    "onnx",
    "sklearn",
    "flask",
    "sqlalchemy",
    "holdfast_server",
    "holdfast_cli",
)
LOOK_S: Final = 0.005
STOP_S: Final = 15.0


class Child(NamedTuple):
    pid: int
    parent: int
    command: tuple[str, ...]


class Watch:
    """Everything that a process starts while the block lasts, however short its life."""

    def __init__(self, parent: psutil.Process) -> None:
        self._parent = parent
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.children: dict[int, Child] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            for child in self._parent.children(recursive=True):
                try:
                    seen = Child(child.pid, child.ppid(), tuple(child.cmdline()))
                except psutil.Error:  # it ended while we looked
                    continue
                if seen.command:  # one that is ending has none any more
                    self.children[child.pid] = seen


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    """One device that serves its first release."""
    with small_fleet([CAMERA]) as started:
        started.publish(GOOD, digits_models.trained())
        started.publish(NEW, digits_models.trained(0.5))
        with started.application():
            started.roll_out(GOOD)
        yield started


def test_a_release_comes_through_a_child_of_the_agent_that_ends(fleet: SmallFleet) -> None:
    """Fetch is the agent's only child, and is gone once the release is there; the workers are the gateway's."""
    agent, gateway = fleet.agent(CAMERA), fleet.gateway(CAMERA)
    with Watch(agent) as started, fleet.application():
        fleet.roll_out(NEW)
    fetches = list(started.children.values())
    assert [one.parent for one in fetches] == [agent.pid]
    assert "holdfast_agent.fetch" in fetches[0].command
    assert not psutil.pid_exists(fetches[0].pid)
    assert not agent.children()

    workers = fleet.workers(CAMERA)
    assert len(workers) == 2
    assert {worker.ppid() for worker in workers} == {gateway.pid}
    assert all("holdfast_worker" in worker.cmdline() for worker in workers)
    assert {os.getpgid(worker.pid) for worker in workers} == {worker.pid for worker in workers}
    assert {agent.ppid(), gateway.ppid()} == {os.getpid()}, "neither is the other's child"
    assert len({agent.pid, gateway.pid, fetches[0].pid, *(worker.pid for worker in workers)}) == 5


def test_only_a_worker_maps_a_model_runtime(fleet: SmallFleet) -> None:
    """After real work: a release was fetched, loaded, tested, served."""
    assert "cryptography" in _mapped(fleet.agent(CAMERA)), "we look in the right place"
    for small in (fleet.agent(CAMERA), fleet.gateway(CAMERA)):
        assert not _mapped(small) & set(HEAVY), small.cmdline()
    for worker in fleet.workers(CAMERA):
        assert {"numpy", "onnxruntime"} <= _mapped(worker)
        assert "cryptography" not in _mapped(worker), "a worker needs no keys"


@pytest.mark.parametrize("command", ["agent", "gateway"])
def test_the_small_processes_import_nothing_heavy(fleet: SmallFleet, command: str) -> None:
    """All that a whole run imported, told by the process itself as it ends."""
    told = fleet.folder / f"{command}-modules.json"
    name = f"{command}-{CAMERA.id}"
    fleet.processes.stop(name)
    if command == "gateway":
        fleet.layout(CAMERA).gateway_addresses.unlink(missing_ok=True)
    fleet.processes.start(
        name, [sys.executable, "-c", TELLING, command, fleet.provisioned.configuration(CAMERA.id), told]
    )
    fleet.seen("it serves", lambda: fleet.answering(CAMERA) != "")
    fleet.wait_for_report(CAMERA)
    assert fleet.ask(CAMERA, digits_models.inked_images()[0]).status == 200
    fleet.processes.stop(name)
    if command == "gateway":
        fleet.start_gateway(CAMERA)
    else:
        fleet.start_agent(CAMERA)
    fleet.seen("the shipped command serves again", lambda: fleet.answering(CAMERA) != "")
    fleet.wait_for_report(CAMERA)
    modules = set(json.loads(told.read_text()))
    assert f"holdfast_{command}.main" in modules
    assert not {module for module in modules if module.partition(".")[0] in HEAVY}


def test_workers_outlive_an_agent_that_is_killed(fleet: SmallFleet) -> None:
    """The same processes serve on, under traffic, and the agent that comes back keeps them."""
    before = fleet.workers(CAMERA)
    with fleet.application() as (application,):
        fleet.more_requests(application, 5)
        fleet.processes.kill(f"agent-{CAMERA.id}")
        fleet.more_requests(application, 20)
        assert fleet.workers(CAMERA) == before
        fleet.start_agent(CAMERA)
        fleet.wait_for_report(CAMERA)
        fleet.more_requests(application, 5)
    assert fleet.workers(CAMERA) == before
    assert not application.failures


def test_a_gateway_that_is_started_again_serves_from_the_record(fleet: SmallFleet) -> None:
    """Without an agent, as after a boot; and the workers of the one that was killed are gone."""
    serving = fleet.slots(CAMERA).serving
    assert serving is not None
    orphans = fleet.workers(CAMERA)
    fleet.processes.kill(f"agent-{CAMERA.id}")
    fleet.processes.kill(f"gateway-{CAMERA.id}")
    _, left = psutil.wait_procs(orphans, timeout=STOP_S)
    assert not left, "workers end with their gateway"

    fleet.start_gateway(CAMERA)
    fleet.seen("the recorded release answers", lambda: fleet.answering(CAMERA) == serving.release.version)
    answer = fleet.ask(CAMERA, digits_models.inked_images()[0])
    assert (answer.status, answer.body["model_version"]) == (200, serving.release.version)
    fleet.seen("both slots have a worker", lambda: len(fleet.workers(CAMERA)) == len(orphans))
    again = fleet.workers(CAMERA)
    fleet.start_agent(CAMERA)
    fleet.wait_for_report(CAMERA)
    assert fleet.workers(CAMERA) == again, "the agent that comes later changes nothing"


def _mapped(process: psutil.Process) -> set[str]:
    """The packages whose compiled parts are in the process' memory."""
    files = {one.path for one in process.memory_maps(grouped=True) if ".so" in one.path}
    return {part for file in files for part in Path(file).parts}


# The shipped entry point, which tells what it imported when it ends.
TELLING: Final = """
import importlib, json, pathlib, sys
command, config, told = sys.argv[1:]
main = importlib.import_module(f"holdfast_{command}.main").main
try:
    main(["run", "--config", config])
finally:
    pathlib.Path(told).write_text(json.dumps(sorted(sys.modules)))
"""
