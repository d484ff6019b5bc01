"""The demo's child processes: each with a log of its own, none left behind.

`setpriv --pdeathsig` has the kernel end a child when the demo dies, however it dies; on the way out every child is asked to
stop, then made to.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import psutil

T = TypeVar("T")

STOP_S: Final = 15.0
POLL_S: Final = 0.05
_LOG_TAIL: Final = 12
# Linux connects from 32768 upwards (ip_local_port_range).
_SERVERS_PORTS: Final = range(20_000, 32_768)


class Missed(AssertionError):
    """Something that should have been observed was not. The demo ends, and says what."""


def wait_for(what: str, observe: Callable[[], T | None], *, within_s: float, every_s: float = POLL_S) -> T:
    """What `observe` returns once it is neither None nor False. Raises Missed at the deadline; never acts by itself."""
    deadline = time.monotonic() + within_s
    while True:
        found = observe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise Missed(f"not seen within {within_s:g} s: {what}")
        time.sleep(every_s)


class Processes:
    """Started by name, from the main thread: the kernel's death signal is the starting thread's."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> int:
        """Start a command under a name that is free; its process id."""
        assert name not in self._running or self._running[name].poll() is not None, name
        guard = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [*guard, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def process_id(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        """SIGTERM, as a service manager would. Raises TimeoutExpired if it does not heed it."""
        self._end(name, signal.SIGTERM)

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._running[name]
        process.send_signal(how)
        process.wait(timeout=STOP_S)
        del self._running[name]  # it ended by our will: `check` does not miss it

    def check(self) -> None:
        """Raises Missed with the end of its log if one has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = self.log(name).read_text(errors="replace").splitlines()[-_LOG_TAIL:]
                raise Missed(f"{name} ended with {process.returncode}; its last words:\n" + "\n".join(tail))

    def stop_all(self) -> list[int]:
        """Ask all, children's children too, then make them. The process ids that outlived even that."""
        everybody = [relative for process in self._running.values() for relative in _with_descendants(process.pid)]
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
        _, late = psutil.wait_procs(everybody, timeout=max(0.1, deadline - time.monotonic()))
        for one in late:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self._running.values():
            process.wait(timeout=STOP_S)
        _, left = psutil.wait_procs(late, timeout=STOP_S)
        return [one.pid for one in left]


def installed(command: str) -> Path:
    """One of the project's own commands, in the environment that runs this."""
    return Path(sys.executable).parent / command


def free_port() -> int:
    """A port of loopback that nobody listens on. None of those that the kernel gives to whoever connects: such a one may be
    taken again before its server is up, or while it is away."""
    for port in random.SystemRandom().sample(_SERVERS_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise Missed("none of a hundred ports is free")


def _with_descendants(process_id: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(process_id)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
