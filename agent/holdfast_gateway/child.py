"""A worker's operating-system process: started with one end of a socket pair, killed with its whole group, always reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final

from holdfast_gateway.confinement import Confinement

# A killed process goes in no time, unless the kernel holds it at a disk; nothing waits for it meanwhile.
REAP_EVERY_S: Final = 0.01
REAP_EVERY_MAX_S: Final = 1.0
# From the end of its connection to its own: the kernel closes files first. One that lives on without a connection is killed then.
ENDING_S: Final = 0.25
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STATM_BYTES: Final = 256
_CLOSED: Final = -1


class Child:
    """Own session and process group: a signal to the gateway's terminal does not reach it, and what it forks dies with it."""

    def __init__(
        self,
        command: Sequence[str],
        theirs: socket.socket,
        confinement: Confinement,
        memory_bytes_max: int,
        variables: Mapping[str, str],
    ) -> None:
        """Start `command --fd N`, confined, with `variables` in its environment besides our own.

        Raises OSError when there is no such program, memory or process to be had.
        """
        number = theirs.fileno()
        account = confinement.account
        self._process = subprocess.Popen(
            [*command, "--fd", str(number)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            pass_fds=(number,),
            start_new_session=True,
            bufsize=0,
            user=account.user if account is not None else None,
            group=account.group if account is not None else None,
            extra_groups=[os.getegid()] if account is not None else None,
        )
        self._confinement = confinement
        self._group = confinement.hold(self._process.pid, memory_bytes_max=memory_bytes_max)
        self._reaping: asyncio.TimerHandle | None = None
        self._statm = _open_statm(self._process.pid)
        self._killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def isolated(self) -> dict[str, str]:
        """What was applied to it from outside, by protection."""
        return {**self._confinement.told.applied, **(self._group.applied if self._group is not None else {})}

    @property
    def reaped(self) -> bool:
        return self._process.returncode is not None

    def memory_bytes(self) -> int:
        """Resident now; 0 when it is not there any more."""
        try:
            return int(os.pread(self._statm, _STATM_BYTES, 0).split()[1]) * _PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return 0

    def kill(self) -> None:
        """Kill it with everything it started. May be repeated."""
        self._killed = True
        if self._process.returncode is None:  # until we have collected it, its number is nobody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            if self._group is not None:
                self._group.kill()  # also what made a session of its own
        self.reap()

    @property
    def killed_by_others(self) -> bool:
        """By SIGKILL, which was neither ours nor its own memory limit's."""
        if self._killed or self._ended_with() != -signal.SIGKILL:
            return False
        return self._group is None or not self._group.reached_its_limit

    def _ended_with(self) -> int | None:
        """Its status, or a signal below 0; None while it lives. It is not collected by this: its group is still to be killed."""
        if self.reaped:
            return self._process.returncode
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def reap(self, every_s: float = REAP_EVERY_S) -> None:
        """Collect it as soon as it has ended. May be repeated."""
        if self._process.poll() is None and (self._reaping is None or every_s != REAP_EVERY_S):
            following = min(every_s * 2, REAP_EVERY_MAX_S)
            self._reaping = asyncio.get_running_loop().call_later(every_s, self.reap, following)
        elif self.reaped:
            self._confinement.let_go(self._group)
            self._group = None
            if self._statm != _CLOSED:
                os.close(self._statm)
                self._statm = _CLOSED

    def once_ended(self, call: Callable[[], None]) -> None:
        """Call it, once: when the process has ended, which is a moment after its files were closed, at the latest in ENDING_S."""
        try:
            watched = os.pidfd_open(self.pid)
        except OSError:  # no descriptor is free: it is told without
            call()
            return
        loop = asyncio.get_running_loop()

        def over() -> None:
            late.cancel()
            loop.remove_reader(watched)
            os.close(watched)
            call()

        late = loop.call_later(ENDING_S, over)
        loop.add_reader(watched, over)

    def ending(self) -> str:
        """How it ended, in words, as far as it is known. To be asked before it is killed."""
        code = self._ended_with()
        if code is None:
            return "its connection broke, and it lived on"
        if code < 0:
            names = {int(known): known.name for known in signal.Signals}
            return f"killed by {names.get(-code, f'signal {-code}')}"
        return f"exited with status {code}"


def _open_statm(process: int) -> int:
    """Kept open, because it is read every second and to open it costs more. Without a free descriptor nothing is measured."""
    try:
        return os.open(f"/proc/{process}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _CLOSED
