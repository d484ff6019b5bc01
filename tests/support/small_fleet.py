"""A broker, a server and a few real devices for one test module, in a temporary folder: the demo's own parts, without a story.

    with small_fleet([device("camera-1", "eu-west")]) as fleet:
        fleet.publish("1.0.0", digits_models.trained())
        with fleet.application(camera):
            fleet.roll_out("1.0.0", "100%")

Everything is the shipped process and is asked through its user's door; what really happened is read from the disks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import psutil
import urllib3
from paho.mqtt import publish, subscribe
from paho.mqtt.enums import MQTTProtocolVersion

from demonstration import evidence, fleet, stage
from demonstration.digits import PIPELINE, RELEASE_TOML, Images
from demonstration.fleet import Device
from demonstration.operator_command import Operator
from demonstration.processes import Missed, Processes, free_port, installed, wait_for
from demonstration.story import start_agent
from demonstration.traffic import Application
from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_agent.edge.layout import StateFolder
from holdfast_cli.server import Server
from holdfast_shared import signing
from holdfast_shared.durable import DoubledFile
from holdfast_shared.identifiers import DeviceId, digest_of
from holdfast_shared.wire.report import TYPE, Report
from support import digits_models
from support.installed_release import golden_cases, tensor
from support.services import need_program

FLEET: Final = fleet.NAME
# Deadlines: many times what each takes, on a machine that others use too.
ROLLOUT_S: Final = 90.0
SEEN_S: Final = 60.0
ANSWER_S: Final = 30.0
LOOK_S: Final = 0.1
# How waves are judged here: in seconds, on enough requests that a quarter of bad ones passes once in 20 000 rollouts (3 of 60).
WATCHED: Final = ("--soak", "1", "--requests-min", "60", "--deadline", "80")
_LOG_CHARACTERS: Final = 3000
_OK: Final = 200


class Answer(NamedTuple):
    status: int
    body: Any


class Told(NamedTuple):
    """An event as the server stored it; `number` is that of its report."""

    number: int
    kind: str
    version: str
    code: str


def device(name: str, region: str = "eu-west", *, canary: bool = True) -> Device:
    return Device(DeviceId(name), region, "real", canary)


def mixed_images() -> Images:
    """Of real digits, every fourth one that the models `…_on_some` go wrong on."""
    blank, inked = digits_models.blank_images(), digits_models.inked_images()
    pixels = np.concatenate([blank[:60], inked[:180]])
    return Images(pixels, np.zeros(len(pixels), dtype=np.int64))


def inked_images() -> Images:
    """Real digits on which no model goes wrong."""
    pixels = digits_models.inked_images()[:200]
    return Images(pixels, np.zeros(len(pixels), dtype=np.int64))


class SmallFleet:
    """Made by `small_fleet`. `server` reads its API; `operator` runs `holdfast` as one of the demo's people."""

    def __init__(self, folder: Path, devices: Sequence[Device], *, health_s: float, policy: Sequence[str] = ()) -> None:
        self.folder = folder
        self.devices = tuple(devices)
        self.provisioned = fleet.provision(folder, devices)
        self.processes = Processes(folder / "logs")
        self._health_s, self._policy = health_s, policy
        self._reachable = True
        self._ports = {"broker": free_port(), "server": free_port()}
        self.broker = f"mqtt://127.0.0.1:{self._ports['broker']}"
        self.server = Server(f"http://127.0.0.1:{self._ports['server']}")
        self.operator = Operator(self.provisioned, self.server.address, lambda _: None)

    # -- starting and stopping

    def start(self) -> None:
        self.start_broker()
        self.start_server()
        fleet.enrol(self.provisioned, self.server)
        for one in self.devices:
            fleet.configure(
                self.provisioned, one, server=self.server.address, broker=self.broker, health_s=self._health_s
            )
            self.start_gateway(one)
            self.start_agent(one)
        for one in self.devices:
            self.wait_for_report(one)

    def start_broker(self) -> None:
        stage.start_broker(self.folder, self.processes, port=self._ports["broker"])

    def start_server(self) -> None:
        """The one data folder and address, however often."""
        listen = f"127.0.0.1:{self._ports['server']}"
        stage.start_server(
            self.folder, self.provisioned, self.processes, self.broker, listen=listen, policy=self._policy
        )

    def cut_off(self) -> None:
        """Neither server nor broker from now on. May be repeated."""
        if self._reachable:
            self.processes.stop("server")
            self.processes.stop("mosquitto")
        self._reachable = False

    def reconnect(self) -> None:
        """Both again, where they were. May be repeated."""
        if not self._reachable:
            self.start_broker()
            self.start_server()
        self._reachable = True

    def start_gateway(self, one: Device) -> None:
        self.layout(one).gateway_addresses.unlink(missing_ok=True)  # of one that was killed
        configuration = self.provisioned.configuration(one.id)
        self.processes.start(f"gateway-{one.id}", [installed("holdfast-gateway"), "run", "--config", configuration])

    def start_agent(self, one: Device) -> None:
        start_agent(self.processes, self.provisioned, one)

    # -- operators

    def publish(self, version: str, model: bytes, *, golden: bytes | None = None, **changed: str) -> None:
        """A release of that model. `golden`: the model whose answers it is to give in its self-test, by default its own.

        `changed`: fields of release.toml and what they become, everywhere that they stand.
        """
        self.operator.run("mira", "publish", str(self._release_folder(version, model, golden or model, changed)))

    def _release_folder(self, version: str, model: bytes, golden: bytes, changed: dict[str, str]) -> Path:
        written = self.folder / "releases" / version
        written.mkdir(parents=True)
        (written / "model.onnx").write_bytes(model)
        (written / "golden.json").write_text(json.dumps({"cases": golden_cases(golden)}))
        text = RELEASE_TOML.format(
            version=version, description="Of a test.", accuracy=0.9, digest=f"sha256:{'0' * 64}", rows=1, sklearn="1"
        )
        for field, value in changed.items():
            lines = [f"{field} = {value}" if line.startswith(f"{field} = ") else line for line in text.splitlines()]
            text = "\n".join(lines)
        (written / "release.toml").write_text(text)
        return written

    def start_rollout(self, version: str, *waves: str) -> str:
        """By default one wave of everybody; the rollout's id."""
        words = [word for wave in waves or ("100%",) for word in ("--wave", wave)]
        planned = self.operator.run("anna", "rollout", "plan", PIPELINE, version, *words, *WATCHED, "--start")
        return str(planned["id"])

    def roll_out(self, version: str, *waves: str) -> None:
        """To its end. Its gates need requests: let an application ask."""
        self.wait_for_rollout(self.start_rollout(version, *waves), "finished")
        for one in self.devices:
            self.wait_until_serving(one, version)
            self.wait_until_in_step(one)

    def wait_for_rollout(self, rollout: str, state: str) -> Any:
        found: Any = None

        def look() -> bool:
            nonlocal found
            self.processes.check()
            found = self.server.get("rollouts", rollout)
            if found["state"] not in (state, "running"):
                raise Missed(f"{rollout} is {found['state']}: {found['cause']}\n{self.logs()}")
            return bool(found["state"] == state)

        self.seen(f"{rollout} is {state}", look, within_s=ROLLOUT_S)
        return found

    # -- devices, from outside

    def wait_for_report(self, one: Device) -> None:
        """One that the server received after now."""
        since = self.server.get("status")["now"]
        self.seen(
            f"a signed report of {one.id}", lambda: (self.server.get("devices", one.id)["last_seen_at"] or 0) > since
        )

    def wait_until_serving(self, one: Device, version: str, *, committed: bool = True) -> None:
        """By the device's own record; `committed`: after its trial."""

        def look() -> bool:
            found = self.slots(one)
            slot = found.current if committed and found.candidate is None else found.serving
            return slot is not None and slot.release.version == version and (not committed or found.candidate is None)

        self.seen(f"{one.id} serves {version}", look)

    def wait_until_in_step(self, one: Device) -> None:
        """It has accepted the newest documents of its region: a rollout's end writes them once more."""

        def look() -> bool:
            newest = self.server.get("assignments", "region", one.region)["pipelines"]
            held = {(kept.scope, kept.pipeline): kept.payload_digest for kept in self.record(one).documents}
            return all(held.get((f"region/{one.region}", name)) == digest for name, digest in newest.items())

        self.seen(f"{one.id} holds the newest documents", look)

    def ask(self, one: Device, image: Any) -> Answer:
        """One application's one request, with nothing retried."""
        body = json.dumps({"id": "7", "inputs": [tensor("image", np.asarray(image).reshape(1, -1))]}).encode()
        return self.request(one, "POST", f"/v2/models/{PIPELINE}/infer", body)

    def request(self, one: Device, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(ANSWER_S)) as http:
            answer = http.request(method, self.address(one) + path, body=body, headers=named)
            return Answer(answer.status, json.loads(answer.data) if answer.data else None)

    @contextlib.contextmanager
    def application(self, *at: Device, images: Images | None = None) -> Iterator[list[Application]]:
        """Applications at those gateways, or at all, that ask as long as the block lasts."""
        started = [
            Application(one.id, self.address(one), images or inked_images(), seed=index)
            for index, one in enumerate(at or self.devices)
        ]
        for one in started:
            one.start()
        try:
            yield started
        finally:
            for one in started:
                one.stop()

    def answering(self, one: Device) -> str:
        """The version that would answer a request now, or empty."""
        answer = self.request(one, "GET", f"/v2/models/{PIPELINE}")
        return str(answer.body["versions"][0]) if answer.status == _OK else ""

    def more_requests(self, application: Application, count: int) -> None:
        target = application.counts.sent + count
        self.seen(f"{count} more requests at {application.device}", lambda: application.counts.sent >= target)

    def address(self, one: Device) -> str:
        return stage.gateway_address(self.provisioned, one, self.processes)

    # -- devices, from inside

    def layout(self, one: Device) -> StateFolder:
        return StateFolder(self.provisioned.state(one.id), self.folder / "run" / one.id)

    def slots(self, one: Device) -> PipelineRecord:
        """The pipeline in the device's own record."""
        return evidence.slots(self.provisioned, one)

    def record(self, one: Device) -> Record:
        found = DoubledFile(self.layout(one).record).read()
        assert found is not None, f"{one.id} has no record"
        return record.decode(found[1])

    def agent(self, one: Device) -> psutil.Process:
        return psutil.Process(self.processes.process_id(f"agent-{one.id}"))

    def gateway(self, one: Device) -> psutil.Process:
        return psutil.Process(self.processes.process_id(f"gateway-{one.id}"))

    def workers(self, one: Device) -> list[psutil.Process]:
        """The oldest first."""
        found = [child for child in self.gateway(one).children() if child.status() != psutil.STATUS_ZOMBIE]
        return sorted(found, key=lambda child: (child.create_time(), child.pid))

    def spooled(self, one: Device) -> list[Report]:
        """The reports that wait on its disk."""
        rows = _rows(self.layout(one).spool, "SELECT envelope FROM reports ORDER BY number")
        payloads = [signing.unverified_payload(row, TYPE, size_bytes_max=len(row)) for (row,) in rows]
        return [msgspec.json.decode(payload, type=Report) for payload in payloads]

    # -- what the server has stored

    def events(self, one: Device, *kinds: str) -> list[Told]:
        """The device's events, in its own order."""
        found = _rows(
            stage.server_database(self.folder),
            "SELECT number, kind, release_version, code FROM device_events WHERE device = ? ORDER BY number, position",
            one.id,
        )
        return [Told(*row) for row in found if not kinds or row[1] in kinds]

    def reports_seen(self, one: Device) -> set[int]:
        """The numbers of its reports that the server has taken in."""
        query = "SELECT number FROM reports_seen WHERE device = ?"
        return {number for (number,) in _rows(stage.server_database(self.folder), query, one.id)}

    def presences(self) -> set[str]:
        """What the broker last said of the devices' connections."""
        return {word for (word,) in _rows(stage.server_database(self.folder), "SELECT presence FROM device_state")}

    def store(self) -> Any:
        """Everything that the server keeps: each table's rows, and its files with their digests."""
        database = stage.server_database(self.folder)
        tables = [name for (name,) in _rows(database, "SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(map(repr, _rows(database, f"SELECT * FROM {name}"))) for name in tables}, files_of(
            database.parent / "blobs"
        )

    # -- the broker

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """As anybody who reaches the broker can; returns when it has taken it."""
        publish.single(topic, payload, qos=1, retain=retain, **self._broker_address)

    def retained(self, topic: str) -> bytes:
        """What whoever subscribes now gets at once."""
        message: Any = subscribe.simple(topic, qos=1, **self._broker_address)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        return bytes(message.payload)

    @property
    def _broker_address(self) -> dict[str, Any]:
        return {"hostname": "127.0.0.1", "port": self._ports["broker"], "protocol": MQTTProtocolVersion.MQTTv5}

    # -- waiting

    def seen(self, what: str, true: Callable[[], bool], *, within_s: float = SEEN_S) -> None:
        """Wait until it is true. Raises Missed with the processes' last words."""
        try:
            wait_for(what, true, within_s=within_s, every_s=LOOK_S)
        except Missed as missed:
            raise Missed(f"{missed}\n{self.logs()}") from missed

    def logs(self) -> str:
        """The end of every process' log."""
        files = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"--- {file.stem}\n{file.read_text(errors='replace')[-_LOG_CHARACTERS:]}" for file in files)


@contextlib.contextmanager
def small_fleet(
    devices: Sequence[Device], *, health_s: float = 1.0, policy: Sequence[str] = ()
) -> Iterator[SmallFleet]:
    """All of it up, and every device known to the server; at the end nothing of it is left.

    `policy`: more words of the server's command line.
    """
    need_program("mosquitto", "mosquitto")
    folder = Path(tempfile.mkdtemp(prefix="holdfast-fleet-"))  # short: sockets of devices lie in it
    started = SmallFleet(folder, devices, health_s=health_s, policy=policy)
    try:
        started.start()
        yield started
    finally:
        left = started.processes.stop_all()
        shutil.rmtree(folder)
    assert not left, f"outlived SIGTERM and SIGKILL: {left}"


def files_of(folder: Path) -> dict[str, str]:
    """Every file below, with the digest of its bytes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): digest_of(file.read_bytes()) for file in files}


def _rows(database: Path, query: str, *values: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=ANSWER_S)) as connection:
        return connection.execute(query, values).fetchall()
