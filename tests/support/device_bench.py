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
from typing import Any, TypeVar

import urllib3

from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord
from holdfast_agent.edge import configuration
from holdfast_shared import durable
from support import digits_models
from support.device_surroundings import DEVICE, FLEET, PIPELINE, WITHIN_S, Surroundings
from support.mosquitto import Mosquitto

T = TypeVar("T")


class DeviceBench(Surroundings):
    """`start_agent` and `start_gateway` start the shipped commands; `close` ends what still runs."""

    def __init__(self, folder: Path, broker: Mosquitto, *, verify_s: float = 86_400.0, health_s: float = 1.0) -> None:
        super().__init__(broker)
        self.folder = folder
        self._agent = {"health_s": health_s, "verify_s": verify_s}
        self.path = self._provision()
        self.state = configuration.load(self.path).folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10))

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
        super().close()

    # -- what its applications ask

    def ask(self, image: int = 0, pipeline: str = PIPELINE) -> tuple[int, str]:
        """One real image at the gateway: the status, and which version answered."""
        url = f"{self.address}/v2/models/{pipeline}/infer"
        answer = self._pool.request("POST", url, body=self.question(image))
        found: Any = json.loads(answer.data)
        return answer.status, str(found.get("model_version", found.get("error", "")))

    @property
    def address(self) -> str:
        found: Any = json.loads(self.state.gateway_addresses.read_bytes())
        return str(found["http"])

    # -- its disk

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

    def _start(self, name: str, module: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, "run", "--config", str(self.path)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self.processes[name]

    def _provision(self) -> Path:
        folder = self.folder
        for name, content in self.documents().items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(content)
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
