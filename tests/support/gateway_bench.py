"""A real gateway process for tests: its state folder, releases installed in it, an agent's end of the control socket, HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, TypeVar

from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import control
from holdfast_gateway.control import FromGateway, Route, Routes, SlotState, Status, ToGateway, Windows
from holdfast_shared import durable, strict_json
from holdfast_shared.assign import Target
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import Envelope, Signature, media_type
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import (
    MODEL_TYPE,
    RELEASE_TYPE,
    Blob,
    DataSet,
    File,
    Framework,
    Guardrail,
    Hardware,
    Limits,
    ModelRef,
    ModelVersion,
    Release,
    SelfTest,
    Stage,
    Tensor,
    Trial,
    Variant,
)
from holdfast_shared.wire.report import Window

DEADLINE_S: Final = 20.0
PIPELINE: Final = "digits"
STAND_IN: Final = (sys.executable, str(Path(__file__).with_name("stand_in_worker.py")))
T = TypeVar("T")


def installed(
    folder: StateFolder,
    version: str,
    *,
    pipeline: str = PIPELINE,
    limits: Limits | None = None,
    window_s: int = 10,
    model_bytes: int = 0,
    **annotations: str,
) -> Target:
    """A release for the stand-in worker, its manifest where a fetch would have put it. `model_bytes`: what its model claims."""
    nothing = "sha256:" + "0" * 64
    model = _claimed(folder, model_bytes) if model_bytes else nothing
    release = Release(
        pipeline=pipeline,
        version=version,
        stages=(Stage(name="only", model=ModelRef(name="m", version="1.0.0", digest=model), inputs={}),),
        outputs={"y": "only.y"},
        self_test=SelfTest(blob=Blob(digest=nothing, size_bytes=0), absolute_tolerance=0, relative_tolerance=0),
        guardrails=(
            Guardrail(metric="error_rate", threshold=0.05, action="fall_back", requests_min=5, window_s=window_s),
        ),
        trial=Trial(soak_s=1, requests_min=1),
        limits=limits or Limits(deadline_ms=1000, load_deadline_s=20),
        annotations=dict(annotations),
    )
    return Target(release=ReleaseRef(version=version, digest=_laid_down(folder, release, RELEASE_TYPE)))


def _claimed(folder: StateFolder, size_bytes: int) -> str:
    """The manifest of a model whose file would be so large, if it were here."""
    nothing = "sha256:" + "0" * 64
    tensor = Tensor(name="x", datatype="FP32", shape=(-1, 4))
    variant = Variant(
        name="only",
        runtime="onnx",
        hardware=Hardware(),
        files=(File(path="m.onnx", role="weights", digest=nothing, size_bytes=size_bytes),),
        inputs=(tensor,),
        outputs=(tensor,),
    )
    model = ModelVersion(
        name="m",
        version="1.0.0",
        training_data=DataSet(name="none", digest=nothing),
        metrics={"accuracy": 1.0},
        framework=Framework(name="none", version="1"),
        variants=(variant,),
    )
    return _laid_down(folder, model, MODEL_TYPE)


def _laid_down(folder: StateFolder, document: Release | ModelVersion, kind: str) -> str:
    """Its digest."""
    payload = strict_json.encode(document)
    envelope = Envelope(base64.b64encode(payload).decode(), media_type(kind), (Signature("k", "cw=="),))
    digest = digest_of(payload)
    durable.make_folder(folder.manifests)
    durable.write_file(folder.manifest(digest), strict_json.encode(envelope))
    return digest


def write_record(folder: StateFolder, **pipelines: PipelineRecord) -> None:
    """What an agent would have left behind."""
    durable.DoubledFile(folder.record).write(
        record.encode(Record(incarnation="0" * 16, pipelines={k.replace("_", "-"): v for k, v in pipelines.items()}))
    )


class AgentEnd:
    """The control socket as an agent has it; everything that was heard is kept."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._rest = b""
        self._serial = 0
        self.heard: list[FromGateway] = []
        self.closed = False

    def close(self) -> None:
        self._socket.close()

    def say(self, message: ToGateway) -> None:
        self._socket.sendall(control.encode(message))

    def route(self, *routes: Route) -> int:
        """Say what should be; its serial."""
        self._serial += 1
        self.say(Routes(serial=self._serial, routes=routes))
        return self._serial

    def serve(self, serving: Target | None, refuge: Target | None = None, testing: Target | None = None) -> int:
        """Of the one pipeline that most tests have."""
        return self.route(Route(pipeline=PIPELINE, serving=serving, refuge=refuge, testing=testing))

    def until(self, found: Callable[[FromGateway], T | None], *, since: int = 0) -> T:
        """The first true answer of `found` to what was heard, from the message number `since` on."""
        due = time.monotonic() + DEADLINE_S
        looked = since
        while True:
            for message in self.heard[looked:]:
                answer = found(message)
                if answer:
                    return answer
            looked = len(self.heard)
            left = due - time.monotonic()
            assert left > 0, f"not heard; heard last: {self.heard[-3:]}"
            assert not self.closed, f"the gateway ended the connection; heard last: {self.heard[-3:]}"
            self._listen(left)

    def _listen(self, left_s: float) -> None:
        ready, _, _ = select.select([self._socket], [], [], left_s)
        if not ready:
            return
        data = self._socket.recv(1 << 20)
        self.closed = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.heard += [control.decode_from_gateway(line) for line in lines]

    def until_closed(self) -> None:
        due = time.monotonic() + DEADLINE_S
        while not self.closed:
            assert time.monotonic() < due, "the gateway keeps the connection"
            with contextlib.suppress(ConnectionResetError):
                self._listen(due - time.monotonic())
                continue
            self.closed = True

    def until_in_force(self, serial: int) -> Status:
        return self.until(lambda one: one if isinstance(one, Status) and one.serial == serial else None)

    def until_state(self, target: Target, state: SlotState, *, since: int = 0) -> control.SlotStatus:
        def found(message: FromGateway) -> control.SlotStatus | None:
            slots = message.slots if isinstance(message, Status) else ()
            return next((one for one in slots if one.target == target and one.state == state), None)

        return self.until(found, since=since)

    def comes_to(self, target: Target, state: SlotState) -> control.SlotStatus:
        """It is in `state` by the newest status that was heard, or by a later one."""
        statuses = [number for number, message in enumerate(self.heard) if isinstance(message, Status)]
        return self.until_state(target, state, since=statuses[-1])

    def windows(self) -> tuple[Window, ...]:
        """Close all windows, and have those that are not acknowledged."""
        since = len(self.heard)
        self.say(control.CloseWindows())
        return self.until(lambda one: one if isinstance(one, Windows) else None, since=since).windows


class GatewayBench:
    """`start`, `stop`, `kill` a gateway over one state folder."""

    def __init__(
        self,
        root: Path,
        *,
        worker: tuple[str, ...] = STAND_IN,
        python: tuple[str, ...] = (sys.executable,),
        popen: dict[str, Any] | None = None,
        standby: str = "warm",
        **gateway: Any,
    ) -> None:
        """`gateway` are fields of that table; `python` and `popen` start the process in another way."""
        self.folder = StateFolder(root / "state")
        durable.make_folder(self.folder.root)
        self._root = root
        self._worker = worker
        self._agents: list[AgentEnd] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._config = root / "agent.toml"
        self._python, self._popen = python, popen or {}
        more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in gateway.items())
        self._config.write_text(
            f'[device]\nid = "d-1"\nfleet = "f"\nstate = "{self.folder.root}"\nkey = "/k"\nmembership = "/m"\n'
            'authorities = "/a"\n[server]\nurl = "http://127.0.0.1:1"\n[broker]\nurl = "mqtt://127.0.0.1:1"\n'
            f'[gateway]\nlisten = "127.0.0.1:0"\nstandby = "{standby}"\n{more}'
        )

    def start(self) -> None:
        command = [*self._python, "-m", "support.gateway_command", str(self._config), *self._worker]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        with (self._root / "gateway.log").open("ab") as log:
            options = {"env": environment, **self._popen}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        due = time.monotonic() + DEADLINE_S
        while self.pid != self._process.pid:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < due, self.log
            time.sleep(0.01)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        for agent in self._agents:
            agent.close()
        self._agents.clear()
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(timeout=DEADLINE_S)

    def agent(self) -> AgentEnd:
        agent = AgentEnd(self.folder.control_socket)
        self._agents.append(agent)
        return agent

    @property
    def log(self) -> str:
        return (self._root / "gateway.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of the gateway that says it is listening."""
        return int(self._addresses().get("pid", 0))

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = str(self._addresses()["http"]).removeprefix("http://").rpartition(":")
        return host, int(port)

    def _addresses(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.folder.gateway_addresses.read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def http(self) -> Http:
        return Http(*self.address)


class Http:
    """A client with one connection that is kept."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = HTTPConnection(host, port, timeout=DEADLINE_S)

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        self.send(method, path, body, headers)
        return self.receive()

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        self._connection.request(method, path, body, headers or {})

    def receive(self) -> tuple[int, dict[str, str], bytes]:
        response = self._connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()

    def get(self, path: str) -> tuple[int, Any]:
        status, _, body = self.ask("GET", path)
        return status, json.loads(body)

    def infer(self, *, id: str = "", version: str = "", **do: str) -> tuple[int, dict[str, Any]]:  # noqa: A002 - the protocol's word
        """`do`: what becomes of it, by version (`v1_2_0="crash"`) or everywhere (`all_="error"`)."""
        wanted = {"*" if name == "all_" else name[1:].replace("_", "."): what for name, what in do.items()}
        return self.infer_raw(json.dumps({"id": id, "do": wanted}).encode(), version)

    def infer_raw(self, body: bytes, version: str = "") -> tuple[int, dict[str, Any]]:
        place = f"/v2/models/{PIPELINE}{f'/versions/{version}' if version else ''}/infer"
        status, _, answer = self.ask("POST", place, body)
        return status, json.loads(answer)


@contextlib.contextmanager
def running_gateway(root: Path, **more: Any) -> Iterator[GatewayBench]:
    """Started, and stopped at the end, whatever happened."""
    bench = GatewayBench(root, **more)
    bench.start()
    try:
        yield bench
    finally:
        bench.stop(signal.SIGKILL if sys.exc_info()[0] is not None else signal.SIGTERM)


def eventually(true: Callable[[], T], what: str) -> T:
    """Wait until it is true."""
    due = time.monotonic() + DEADLINE_S
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < due, what
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether that process runs."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
