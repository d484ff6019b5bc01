"""A service manager's ends of sd_notify(3) and sd_listen_fds(3), with the real protocols: what systemd does, without systemd."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

DEADLINE_S: Final = 20.0
# Descriptors are moved up first, so that none of them is in the way of 3, 4, ….
_ASIDE: Final = 64
# As systemd does between fork and exec: the sockets from 3 on, and whom they are for.
_LAUNCHER: Final = """
import os, sys
given = [int(one) for one in sys.argv[1].split(",")]
for place, descriptor in enumerate(given):
    os.dup2(descriptor, 3 + place)
    os.close(descriptor)
os.environ |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": sys.argv[2], "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[3], sys.argv[3:])
"""


class Notified:
    """The socket that NOTIFY_SOCKET names; `heard` is all that came, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def close(self) -> None:
        self._socket.close()

    def until(self, start: str) -> str:
        """The next message that starts so."""
        due = time.monotonic() + DEADLINE_S
        while (left := due - time.monotonic()) > 0:
            said = self._next(left)
            if said is not None and said.startswith(start):
                return said
        raise AssertionError(f"not heard: {start}; heard: {self.heard}")

    def silent_for(self, start: str, seconds: float) -> bool:
        """Whether nothing that starts so comes in that time."""
        due = time.monotonic() + seconds
        while (left := due - time.monotonic()) > 0:
            said = self._next(left)
            if said is not None and said.startswith(start):
                return False
        return True

    def drain(self) -> None:
        """Hear what has come already."""
        while self._next(0.001) is not None:
            pass

    def _next(self, timeout_s: float) -> str | None:
        self._socket.settimeout(timeout_s)
        try:
            said = self._socket.recv(4096).decode()
        except TimeoutError:
            return None
        self.heard.append(said)
        return said


@contextlib.contextmanager
def notified(folder: Path) -> Iterator[Notified]:
    found = Notified(folder / "notify.sock")
    try:
        yield found
    finally:
        found.close()


def start_with_sockets(
    command: Sequence[str], given: Sequence[socket.socket], names: Sequence[str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a service with listening sockets of these names, as a socket unit does."""
    aside = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, _ASIDE) for one in given]
    launcher = [sys.executable, "-c", _LAUNCHER, ",".join(map(str, aside)), ":".join(names), *command]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        return subprocess.Popen(launcher, stdout=log, stderr=log, pass_fds=aside, env=environment)
    finally:
        for one in aside:
            os.close(one)
