"""Starts the shipped commands in milliseconds: a process that has imported them forks whenever it is asked to.

What it forks is a process like any other, of the shipped code, with its own session: only the second of importing is spared.

    zygote = Zygote(["holdfast_agent.edge.assembly"])
    running = zygote.start("holdfast_agent.main", ["run", "--config", "agent.toml"], log)
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STOP_S: Final = 10.0


class Forked:
    """A process that is not our child; its end is seen by its pidfd, so no other can be taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def signal(self, number: int) -> None:
        if self.alive():
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        os.close(self._pidfd)


class Zygote:
    def __init__(self, modules: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.zygote", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def start(self, module: str, arguments: Sequence[str], log: Path) -> Forked:
        """Fork, and run the module's `main` with these arguments, its output appended to `log`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, list(arguments), str(log)]) + "\n")
        return Forked(int(self._process.stdout.readline()))

    def close(self) -> None:
        with self._process:
            self._process.terminate()
            self._process.wait(STOP_S)


def _fork_on_demand(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(*json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become(module: str, arguments: list[str], log: str) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(number, target)
        found = importlib.import_module(module).main(arguments)
        code = found if isinstance(found, int) else 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _fork_on_demand(sys.argv[1:])
