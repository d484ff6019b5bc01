"""What somebody who stands before a device can do: status, verify, doctor and rollback, agent up or not, network or not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_gateway import control
from holdfast_gateway.control import Routes, SlotStatus, Status
from holdfast_shared import durable
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import digits_models, installed_release
from support.device_bench import DeviceBench, Traffic, running_device
from support.device_surroundings import PIPELINE
from support.hostile_server import status as answers
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
NOBODY = 65534


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker) as running:
        yield running


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)

    def check(self, name: str) -> Any:
        return next(one for one in self.answer["checks"] if one["check"] == name)


def run(device: DeviceBench, command: str, *more: str, **environment: str) -> Said:
    ended = subprocess.run(
        [sys.executable, "-m", "holdfast_agent", command, "--config", str(device.path), *more],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    return Said(ended.returncode, ended.stdout, ended.stderr)


def install(device: DeviceBench, version: str, model: bytes) -> Published:
    """Served and committed."""
    published = installed_release.publish(PIPELINE, version, model, trial=Trial(soak_s=0, requests_min=0))
    device.publish(published)
    device.assign(Rule(mode="serve", release=published.ref))
    device.serves(version)
    device.eventually(lambda: device.saved().state == "idle" or None, f"{version} is committed")
    return published


@pytest.fixture
def two(device: DeviceBench) -> tuple[Published, Published]:
    """1.1.0 serves, 1.0.0 is previous."""
    one = install(device, "1.0.0", digits_models.trained())
    other = install(device, "1.1.0", digits_models.trained(0.2))
    assert device.saved().previous is not None
    return one, other


def test_a_rollback_is_asked_of_the_agent_that_runs(device: DeviceBench, two: tuple[Published, Published]) -> None:
    """No request fails, it is reported with its reason, and the document that wants 1.1.0 back is passed over."""
    with Traffic(device) as traffic:
        said = run(device, "rollback", "--reason", "the lens is foggy", "--json")
        assert said.status == 0, said.err
        assert said.answer == {"pipeline": PIPELINE, "left": "1.1.0", "serves": "1.0.0", "confirmed": True}
        assert device.ask() == (200, "1.0.0")
    assert traffic.failed == []
    (told,) = device.eventually(lambda: device.events("rolled_back") or None, "it is reported")
    assert (told.release, told.code, told.detail) == (two[1].ref, "local-rollback", "the lens is foggy")
    device.assign(Rule(mode="serve", release=two[1].ref), Rule(mode="serve", release=two[0].ref))
    device.eventually(lambda: device.events("accepted")[2:] or None, "a newer document is accepted")
    device.kill("agent")
    device.start_agent()
    device.serves("1.0.0")
    assert device.ask() == (200, "1.0.0")
    again = run(device, "rollback")
    assert again.status == 2
    assert "nothing is done: there is no other release of digits on this device" in again.err
    assert device.saved().serving == device.saved().current


def test_without_an_agent_and_without_a_network_it_happens_all_the_same(
    device: DeviceBench, two: tuple[Published, Published]
) -> None:
    """At once, by a gateway that runs; the agent that starts later reports it, and when it was."""
    device.terminate("agent")
    device.broker.stop()
    before = device.saved()
    with Traffic(device) as traffic:
        said = run(device, "rollback", PIPELINE, "--json")
        assert said.status == 0, said.err
        assert said.answer["confirmed"] is True
        assert device.ask() == (200, "1.0.0")
    assert traffic.failed == []
    saved = device.saved()
    assert [(one.target, one.code) for one in saved.condemned_here] == [(before.current, "local-rollback")]
    assert saved.state == "idle", "confirmed by the gateway"
    device.broker.start()
    device.start_agent()
    (told,) = device.eventually(lambda: device.events("rolled_back") or None, "it is reported by the next agent")
    assert (told.release, told.code) == (two[1].ref, "local-rollback")
    assert told.began_monotonic_us is not None
    assert 0 <= told.at_monotonic_us - told.began_monotonic_us < 5_000_000
    assert len({report.number for report in device.reports}) == len(device.reports)


class SlowGateway:
    """The gateway's end of the control socket: both slots are ready, and a switch takes half a second to be in force."""

    SWITCH_S = 0.5

    def __init__(self, path: Path, pipeline: PipelineRecord) -> None:
        self._slots = tuple(
            SlotStatus(pipeline=PIPELINE, target=slot, state="ready")
            for slot in (pipeline.current, pipeline.previous)
            if slot is not None
        )
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SlowGateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._listening.close()

    def _run(self) -> None:
        agent, _ = self._listening.accept()
        with agent, agent.makefile("rb") as lines:
            agent.sendall(control.encode(Status(serial=0, slots=self._slots, gateway="slow")))
            for line in lines:
                said = control.decode_to_gateway(line)
                if isinstance(said, Routes):
                    if said.routes[0].serving != self._slots[0].target:
                        threading.Event().wait(self.SWITCH_S)
                    agent.sendall(control.encode(Status(serial=said.serial, slots=self._slots, gateway="slow")))


def test_without_an_agent_it_ends_when_the_gateway_has_confirmed(
    device: DeviceBench, two: tuple[Published, Published]
) -> None:
    """However long a switch takes: only then is it known when 1.0.0 served, and that is what is reported."""
    device.terminate("agent")
    device.terminate("gateway")
    with SlowGateway(device.state.control_socket, device.saved()):
        assert run(device, "rollback").status == 0
    assert device.saved().state == "idle"
    device.start_agent()
    (told,) = device.eventually(lambda: device.events("rolled_back") or None, "it is reported by the next agent")
    assert told.began_monotonic_us is not None
    assert told.at_monotonic_us - told.began_monotonic_us >= SlowGateway.SWITCH_S * 1_000_000


def test_without_agent_and_gateway_it_is_recorded_and_the_gateway_starts_with_it(
    device: DeviceBench, two: tuple[Published, Published]
) -> None:
    device.terminate("agent")
    device.terminate("gateway")
    said = run(device, "rollback", "--json")
    assert (said.status, said.answer["serves"], said.answer["confirmed"]) == (0, "1.0.0", False), said
    device.start_gateway()
    device.eventually(lambda: device.state.gateway_addresses.exists() or None, "the gateway listens")
    device.eventually(lambda: device.ask() == (200, "1.0.0") or None, "1.0.0 answers")


def test_a_hung_agent_is_said_so_and_its_record_is_not_written(
    device: DeviceBench, two: tuple[Published, Published]
) -> None:
    """It holds the record: two writers would be worse than none. The socket of an agent that is gone is no agent."""
    before = device.saved()
    device.kill("agent")
    with (device.folder / "holder.log").open("wb") as log:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(device.path)], stdout=subprocess.PIPE, stderr=log)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        said = run(device, "rollback")
        holder.kill()
    assert said.status == 2
    assert "an agent holds the record, but none answers" in said.err
    assert device.saved() == before


HOLDER = """
import sys, time
from pathlib import Path
from holdfast_agent.edge import configuration
from holdfast_agent.edge.record_file import RecordFile
with RecordFile(configuration.load(Path(sys.argv[1])).folder):
    print("held", flush=True)
    time.sleep(600)
"""


def test_status_tells_what_the_record_the_agent_and_the_gateway_say(
    device: DeviceBench, two: tuple[Published, Published]
) -> None:
    said = run(device, "status", "--json").answer
    assert (said["agent"], said["pipelines"][PIPELINE]["serving"]) == (True, "1.1.0")
    assert said["gateway"]["answers"] == {PIPELINE: "1.1.0"}
    assert said["gateway"]["http"] == device.address
    assert said["gateway"]["isolation"]["applied"]["network"] == "seccomp"
    assert "worker_user names none" in said["gateway"]["isolation"]["degraded"]["user"]
    text = run(device, "status").out
    assert "digits: idle, serves 1.1.0" in text
    assert "current 1.1.0, previous 1.0.0, candidate -" in text
    assert "network (seccomp)" in text
    assert "  not user: workers run as the gateway's user" in text
    device.kill("agent")
    device.terminate("gateway")
    said = run(device, "status", "--json").answer
    assert (said["agent"], said["gateway"], said["pipelines"][PIPELINE]["serving"]) == (False, None, "1.1.0")


def test_verify_finds_one_rotten_bit_in_any_slot(device: DeviceBench, two: tuple[Published, Published]) -> None:
    said = run(device, "verify")
    assert (said.status, said.out.count("ok  ")) == (0, 2), said
    weights = max(two[0].blobs, key=lambda digest: len(two[0].blobs[digest]))
    path = device.state.blob(weights)
    rotten = bytearray(path.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    durable.write_file(path, bytes(rotten))
    said = run(device, "verify", "--json")
    assert said.status == 1
    assert [one["damaged"] for one in said.answer["slots"]] == [[], [weights]]
    assert device.ask()[0] == 200, "it only looks"


def test_a_well_device_has_nothing_but_ok(device: DeviceBench, two: tuple[Published, Published]) -> None:
    device.files.on("/api/v1/assignments/region/eu-west", answers(200))
    said = run(device, "doctor", "--json")
    assert said.status == 0, said
    assert {one["state"] for one in said.answer["checks"]} == {"ok"}, said.out
    assert len(said.answer["checks"]) == 14
    assert run(device, "doctor").out.count("\n") == len(said.answer["checks"]), "one line each"


def test_what_ails_a_device_is_said_with_what_helps(device: DeviceBench, two: tuple[Published, Published]) -> None:
    """Everything at once: no broker, no server, no agent, no gateway, a half of the record, a key that all may read."""
    device.broker.stop()
    device.kill("agent")
    device.terminate("gateway")
    device.files.close()
    newest = max(device.state.root.glob("record.?"), key=lambda half: half.stat().st_mtime_ns)
    durable.write_file(newest, newest.read_bytes()[:80])
    (device.folder / "device.pem").chmod(0o644)
    said = run(device, "doctor", "--json")
    assert said.status == 1
    states = {one["check"]: one["state"] for one in said.answer["checks"]}
    assert {name: state for name, state in states.items() if state != "ok"} == {
        "identity": "fail",
        "record": "warn",
        "gateway": "warn",
        "agent": "warn",
        "broker": "fail",
        "server": "fail",
    }
    assert all(one["do"] for one in said.answer["checks"] if one["state"] != "ok")
    assert "chmod 0600" in said.check("identity")["do"]
    assert not (device.state.root / "doctor-probe").exists()


def test_a_broken_configuration_is_the_one_finding(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("[device]\nid = 3\n")
    ended = subprocess.run(
        [sys.executable, "-m", "holdfast_agent", "doctor", "--config", str(tmp_path / "agent.toml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stdout.startswith("fail  configuration")
    assert "[server] url is missing" in ended.stdout
    assert "do: correct them all" in ended.stdout


def test_a_runtime_that_cannot_be_imported_is_told_with_its_last_words(device: DeviceBench, tmp_path: Path) -> None:
    """As on a device where a library is missing: found before a release is blamed for it."""
    broken = tmp_path / "broken" / "onnxruntime"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    said = run(device, "doctor", "--json", PYTHONPATH=str(broken.parent))
    assert said.check("worker")["state"] == "ok", "it starts; the runtime is what fails"
    assert said.check("runtime")["state"] == "fail"
    assert "libgomp.so.1 is missing" in said.check("runtime")["said"]


def test_as_root_what_is_written_belongs_to_the_agents_user() -> None:
    """Root who rolls back must not leave a record that the agent cannot read any more."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    ours = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
    environment = {"PYTHONPATH": os.pathsep.join(ours), "PATH": os.defpath}
    python = python_for(NOBODY, environment)
    with tempfile.TemporaryDirectory() as name, running_mosquitto() as broker:
        device = DeviceBench(Path(name), broker)
        try:
            slots = [
                Target(release=installed_release.install(device.state, PIPELINE, version, digits_models.trained()))
                for version in ("1.0.0", "1.1.0")
            ]
            saved = Record(
                incarnation="0" * 16, pipelines={PIPELINE: PipelineRecord(current=slots[1], previous=slots[0])}
            )
            durable.DoubledFile(device.state.record).write(record.encode(saved))
            for path in (device.folder, *device.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            command = [python, "-m", "holdfast_agent", "rollback", "--config", str(device.path)]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
            assert ended.returncode == 0, ended.stderr
            assert device.saved().serving == slots[0]
            assert {path.stat().st_uid for path in (device.folder, *device.folder.rglob("*"))} == {NOBODY}
        finally:
            device.close()


def python_for(user: int, environment: dict[str, str]) -> str:
    """A Python of this version that the user may run, with what we import: root's own may be closed to others."""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        with contextlib.suppress(OSError):
            probe = [python, "-c", "import holdfast_agent.edge.assembly"]
            if subprocess.run(probe, user=user, group=user, env=environment, capture_output=True).returncode == 0:
                return python
    pytest.skip("no Python here can be run by anybody but root")
