"""A device that is a machine of its own, as its user sets it up, and what is around it: broker, server, director, publisher."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Limits, Trial
from holdfast_shared.wire.report import Isolation
from support import digits_models, installed_release, machine
from support.device_surroundings import FLEET, PIPELINE, Surroundings
from support.installed_release import Published
from support.isolation_bench import MIB
from support.machine import CHECKOUT, HOST, LOOK_EVERY_S, WITHIN_S, Machine, running_machine
from support.mosquitto import Mosquitto, running_mosquitto

T = TypeVar("T")

SOURCES: Final = "/root/holdfast"
CONFIG: Final = "/etc/holdfast/agent.toml"
COMMAND: Final = "/opt/holdfast/bin/holdfast-agent"
# An emulated machine is some ten times slower than the one that emulates it.
LIMITS: Final = Limits(deadline_ms=30_000, load_deadline_s=300, memory_bytes_max=256 * MIB)


def release(version: str, model: bytes | None = None, requests_min: int = 0) -> Published:
    """Small and good, unless another `model` is given; each version another."""
    trial = Trial(soak_s=0, requests_min=requests_min)
    strength = 0.05 + float(version.split(".")[1]) / 10
    made = model or digits_models.trained(strength)
    return installed_release.publish(PIPELINE, version, made, limits=LIMITS, trial=trial)


class MachineBench(Surroundings):
    """`install` and `configure` are deploy/README.md's steps."""

    def __init__(self, made: Machine, broker: Mosquitto) -> None:
        super().__init__(broker)
        self.machine = made

    def install(self, folder: Path) -> str:
        """From files alone; what the installer said."""
        wheel, wheels = machine.own_wheel(folder), machine.wheels()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(CHECKOUT / "deploy", "deploy")
            tar.add(CHECKOUT / "scripts/locks", "scripts/locks")
            tar.add(wheels, "wheels")
            tar.add(wheel, wheel.name)
        self.machine.run(f"mkdir {SOURCES} && tar -x -C {SOURCES}", put=packed.getvalue())
        return self.machine.run(
            f"cd {SOURCES} && deploy/install --wheel {wheel.name} --wheels wheels", within_s=2 * WITHIN_S
        )

    def configure(self) -> None:
        """The fields that every device has its own of, and its documents."""
        edits = {
            "fleet": FLEET,
            "url = .http": f"http://{HOST}:{self.files.url.rpartition(':')[2]}",
            "url = .mqtt": f"mqtt://{HOST}:{self.broker.port}",
        }
        for line, value in edits.items():
            self.machine.run(f'sed -i \'/^{line}/s|".*"|"{value}"|\' {CONFIG}')
        self.machine.run(f"sed -i 's/^# health_s = 60 /health_s = 1 /' {CONFIG}")
        for name, content in self.documents().items():
            self.machine.put(content, f"/etc/holdfast/{name.replace('device.pem', 'device.key')}")
        self.machine.run("chown root:holdfast /etc/holdfast/* && chmod 0640 /etc/holdfast/* && sync")

    def serve(self, published: Published) -> None:
        """Have the region serve it."""
        self.publish(published)
        self.assign(Rule(mode="serve", release=published.ref))

    def until_committed(self, version: str) -> None:
        """It serves, and its trial is over."""
        self.eventually(
            lambda: any(one.release is not None and one.release.version == version for one in self.events("committed")),
            f"{version} is committed",
        )
        self.until_answered_by(version)

    def ask(self, body: bytes | None = None, *, pipeline: str = PIPELINE) -> tuple[int, str]:
        """As an application of the machine, at the port that systemd opened: the status, and which version answered."""
        url = f"http://127.0.0.1:8000/v2/models/{pipeline}/infer"
        command = f"curl -s --max-time 240 -w '\\n%{{http_code}}' --data-binary @- {url}"
        answer, _, status = self.machine.run(command, put=body or self.question()).rpartition("\n")
        found: Any = json.loads(answer) if answer else {}
        return int(status), str(found.get("model_version", found.get("error", "")))

    def answer(self) -> str | None:
        """The version that answers; None when none does."""
        status, version = self.ask()
        return version if status == 200 else None

    def until_answered_by(self, version: str) -> None:
        self.eventually(lambda: self.ask() == (200, version), f"{version} answers")

    def isolation(self) -> Isolation:
        """What the gateway says of its workers."""
        said: Any = json.loads(self.machine.run("curl -s http://127.0.0.1:8000/v2"))
        return msgspec.convert(said["isolation"], Isolation)

    def service(self, name: str, field: str) -> str:
        return self.machine.run(f"systemctl show --value -p {field} holdfast-{name}.service").strip()

    def eventually(self, observe: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + WITHIN_S
        last = ""
        while time.monotonic() < deadline:
            try:
                found = observe()
            except AssertionError as error:  # not yet there to be asked
                last = str(error)
            else:
                if found is not None and found is not False:
                    return found
            time.sleep(LOOK_EVERY_S)  # what a machine does is seen by asking it
        raise AssertionError(f"not seen within {WITHIN_S:g} s: {what}; {last}\n{self.machine.journal()}")


@contextlib.contextmanager
def running_bench(folder: Path) -> Iterator[MachineBench]:
    """A machine with nothing of ours on it, and all that is around it."""
    with running_mosquitto() as broker, running_machine(folder) as made:
        bench = MachineBench(made, broker)
        try:
            yield bench
        finally:
            bench.close()
