"""A whole device in real processes: agent, gateway, worker and fetch, with a real mosquitto and a server of files.

The bench is its director and its publisher: it signs documents and releases, and believes only signed reports.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import urllib3
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord
from holdfast_agent.edge import configuration
from holdfast_shared import durable, signing, strict_json, topics
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire import membership as membership_wire
from holdfast_shared.wire import report as report_wire
from holdfast_shared.wire.assignment import TYPE, Assignment, Condemned, Rule, Scope
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.report import Event, Report
from support import digits_models
from support.hostile_server import HostileServer, honest
from support.installed_release import PUBLISHER, Published, tensor
from support.mosquitto import Mosquitto

T = TypeVar("T")

FLEET: Final = "test"
DEVICE: Final = "camera-7"
REGION: Final = "eu-west"
PIPELINE: Final = "digits"
WITHIN_S: Final = 40.0
DIRECTOR, OTTO, KEY = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()


class DeviceBench:
    """`start_agent` and `start_gateway` start the shipped commands; `close` ends what still runs."""

    def __init__(self, folder: Path, broker: Mosquitto, *, verify_s: float = 86_400.0, health_s: float = 1.0) -> None:
        self.folder, self.broker = folder, broker
        self._agent = {"health_s": health_s, "verify_s": verify_s}
        self.files = HostileServer()
        self.path = self._provision()
        self.state = configuration.load(self.path).folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seq = 0
        self._reports: list[Report] = []
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10))
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench", protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(topics.health(FLEET, DEVICE), 1), (topics.event(FLEET, DEVICE), 1)]
        )
        self._listening = threading.Event()
        self._client.on_subscribe = lambda *_: self._listening.set()
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._listening.wait(WITHIN_S)

    # -- the device's processes

    def start_agent(self) -> subprocess.Popen[bytes]:
        return self._start("agent", "holdfast_agent")

    def start_gateway(self) -> subprocess.Popen[bytes]:
        return self._start("gateway", "holdfast_gateway")

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        self.processes[name].kill()
        self.processes[name].wait(WITHIN_S)

    def terminate(self, name: str) -> int:
        self.processes[name].terminate()
        return self.processes[name].wait(WITHIN_S)

    def lose_broker(self) -> None:
        self._listening.clear()
        self.broker.stop()

    def find_broker(self) -> None:
        """Started anew, and empty. The agent is held until somebody listens: a broker keeps no report for nobody."""
        self.processes["agent"].send_signal(signal.SIGSTOP)
        self.broker.start()
        try:
            assert self._listening.wait(WITHIN_S)
        finally:
            self.processes["agent"].send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._pool.clear()
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(WITHIN_S)
        self.files.close()

    # -- what others say to it

    def publish(self, release: Published) -> None:
        """Have the server offer it."""
        for digest, envelope in release.manifests.items():
            self.files.on(f"/api/v1/manifests/{digest}", honest(envelope))
        for digest, blob in release.blobs.items():
            self.files.on(f"/api/v1/blobs/{digest}", honest(blob))

    def assign(self, *rules: Rule, condemned: tuple[Condemned, ...] = (), pipeline: str = PIPELINE) -> None:
        """The region's next document, retained at the broker."""
        self._seq += 1
        now = time.time_ns() // 1000
        document = Assignment(
            fleet=FLEET,
            scope=Scope(region=REGION),
            pipeline=pipeline,
            epoch=1,
            seq=self._seq,
            issued_at=now,
            not_after=now + 3600 * 1_000_000,
            rules=rules,
            condemned=condemned,
        )
        envelope = signing.sign(strict_json.encode(document), TYPE, [DIRECTOR])
        topic = topics.region_assignment(FLEET, REGION, pipeline)
        self._client.publish(topic, envelope, qos=1, retain=True).wait_for_publish(WITHIN_S)

    def ask(self, image: int = 0, pipeline: str = PIPELINE) -> tuple[int, str]:
        """One real image at the gateway: the status, and which version answered."""
        pixels = digits_models.images()[image].reshape(1, -1)
        body = json.dumps({"inputs": [tensor("image", pixels)]})
        answer = self._pool.request("POST", f"{self.address}/v2/models/{pipeline}/infer", body=body)
        found: Any = json.loads(answer.data)
        return answer.status, str(found.get("model_version", found.get("error", "")))

    @property
    def address(self) -> str:
        found: Any = json.loads(self.state.gateway_addresses.read_bytes())
        return str(found["http"])

    # -- what it says

    @property
    def reports(self) -> list[Report]:
        return list(self._reports)

    def events(self, kind: str) -> list[Event]:
        return [event for report in self.reports for event in report.events if event.kind == kind]

    def serves(self, version: str, pipeline: str = PIPELINE) -> Report:
        """The newest report, once it says so."""

        def found() -> Report | None:
            newest = max(self.reports, key=lambda one: one.number, default=None)
            if newest is None:
                return None
            serving = next((one.serving for one in newest.pipelines if one.pipeline == pipeline), None)
            return newest if serving is not None and serving.release.version == version else None

        return self.eventually(found, f"a signed report that {pipeline} {version} serves")

    def saved(self, pipeline: str = PIPELINE) -> PipelineRecord:
        """The record as it lies on the disk."""
        found = durable.DoubledFile(self.state.record).read()
        return record.decode(found[1]).pipeline(pipeline) if found is not None else PipelineRecord()

    def eventually(self, observe: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            found = observe()
            if found is not None and found is not False:
                return found
            if any(process.poll() for process in self.processes.values() if process.returncode != -signal.SIGKILL):
                break  # one of them ended by itself
            time.sleep(0.02)
        logs = "\n".join(f"--- {file}\n{file.read_text()[-4000:]}" for file in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"not seen within {WITHIN_S} s: {what}; the record: {self.saved()}\n{logs}")

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        keys = {KEY.public.key_id: KEY.public}
        limit = report_wire.ENVELOPE_BYTES_MAX
        verified = signing.verify(bytes(message.payload), report_wire.TYPE, keys, size_bytes_max=limit)
        self._reports.append(strict_json.decode(verified.payload, Report, what="report", size_bytes_max=limit))

    def _start(self, name: str, module: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, "run", "--config", str(self.path)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self.processes[name]

    def _provision(self) -> Path:
        folder = self.folder
        text = {name: key.public.to_text() for name, key in {"m": PUBLISHER, "d": DIRECTOR, "o": OTTO}.items()}
        trusted = Authorities(
            fleet=FLEET,
            version=1,
            publishers=(Publisher(name="mira", public_key=text["m"]),),
            directors=(Director(name="director", public_key=text["d"], epoch=1),),
            enrolment=(Holder(name="otto", public_key=text["o"]),),
            operators=(),
            approvers=(),
        )
        (folder / "authorities.json").write_bytes(strict_json.encode(trusted))
        member = Membership(
            fleet=FLEET, device=DEVICE, region=REGION, counter=1, public_key=KEY.public.to_text(), issued_at=1
        )
        signed = signing.sign(strict_json.encode(member), membership_wire.TYPE, [OTTO])
        (folder / "membership.json").write_bytes(signed)
        (folder / "device.pem").touch(mode=0o600)
        (folder / "device.pem").write_bytes(KEY.to_pem())
        tables: dict[str, dict[str, object]] = {
            "device": {
                "id": DEVICE,
                "fleet": FLEET,
                "state": str(folder / "state"),
                "key": str(folder / "device.pem"),
                "membership": str(folder / "membership.json"),
                "authorities": str(folder / "authorities.json"),
            },
            "server": {"url": self.files.url},
            "broker": {"url": self.broker.url},
            "agent": {**self._agent},
            "gateway": {"listen": "127.0.0.1:0"},
        }
        path = folder / "agent.toml"
        lines = []
        for table, values in tables.items():
            lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        path.write_text("\n".join(lines) + "\n")
        return path


class Traffic:
    """Applications that never stop asking, each image in turn."""

    def __init__(self, bench: DeviceBench, pipeline: str = PIPELINE) -> None:
        self._bench, self._pipeline = bench, pipeline
        self.answers: list[tuple[int, str]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(WITHIN_S)

    @property
    def failed(self) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if answer[0] != 200]

    def _run(self) -> None:
        image = 0
        while not self._stopping.is_set():
            self.answers.append(self._bench.ask(image, self._pipeline))
            image = (image + 1) % len(digits_models.images())
            self._stopping.wait(0.005)


@contextlib.contextmanager
def running_device(folder: Path, broker: Mosquitto, **agent: float) -> Iterator[DeviceBench]:
    """Agent and gateway up."""
    bench = DeviceBench(folder, broker, **agent)
    try:
        bench.start_gateway()
        bench.start_agent()
        yield bench
    finally:
        bench.close()
