"""A mosquitto of the test's own, on a free port of loopback, that forgets everything when it ends."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from demonstration.processes import free_port
from support.services import need_program

START_S: Final = 15.0


class Mosquitto:
    """`stop` and `start` keep the port: for tests of what happens while the broker is away."""

    def __init__(self, folder: Path, *, more: str = "") -> None:
        """`more`: further lines of its configuration."""
        self._more = more
        self._program = need_program("mosquitto", "mosquitto")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        configuration = self._folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n{self._more}"
        )
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto did not start: {(self._folder / 'mosquitto.log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=START_S)
            self._process = None


@contextlib.contextmanager
def running_mosquitto(*, more: str = "") -> Iterator[Mosquitto]:
    with tempfile.TemporaryDirectory(prefix="holdfast-mosquitto-") as folder:
        broker = Mosquitto(Path(folder), more=more)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()
