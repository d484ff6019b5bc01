"""The fetch process, seen from the agent: started for one target, heard in one line, never left behind.

It runs in a session of its own, and holds a pipe to us as its standard input: when we die, however we die, it ends too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast_agent.fetch import outcome
from holdfast_agent.fetch.outcome import LINE_BYTES_MAX, Outcome
from holdfast_shared.errors import Malformed
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT

# A gigabyte at 300 kB/s. What came is kept, so a longer fetch goes on at the next try.
DEADLINE_S: Final = 3600.0
# The child keeps the deadline itself; past this grace it hangs and is killed.
GRACE_S: Final = 15.0
JOIN_S: Final = 10.0

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """`target` and `environment` are digests; `code` one of `fetch.outcome.EXIT_STATUS`, empty when `ok`."""

    target: str
    ok: bool
    code: str
    detail: str
    pipeline: str = ""
    retry_after_s: float = 0.0
    environment: str = SYSTEM_ENVIRONMENT


class FetchProcess:
    """At most one fetch at a time. `emit` is called on a thread of its own, once for each fetch that was not stopped."""

    def __init__(
        self, config_path: Path, emit: Callable[[FetchEnded], None], *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._config_path, self._emit, self._deadline_s = config_path, emit, deadline_s
        self._child: _Child | None = None

    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str = SYSTEM_ENVIRONMENT,
        *,
        urgent: bool = False,
        from_disk: bool = False,
    ) -> None:
        """Fetch that release and have its environment built; ends the fetch before. `from_disk`: without any network.

        Every failure, of starting it also, comes as FetchEnded.
        """
        self.stop()
        command = [
            *(sys.executable, "-I", "-m", "holdfast_agent.fetch"),
            *("--config", str(self._config_path.absolute())),
            *("--pipeline", pipeline, "--version", version, "--digest", target_digest, "--environment", environment),
            *("--deadline-s", f"{self._deadline_s:g}"),
            *(("--urgent",) if urgent else ()),
            *(("--from-disk",) if from_disk else ()),
        ]

        def ended(found: Outcome) -> None:
            wait_s = found.retry_after_s or 0.0
            self._emit(FetchEnded(target_digest, found.ok, found.code, found.detail, pipeline, wait_s, environment))

        self._child = _Child(command, self._deadline_s + GRACE_S, ended)

    def stop(self) -> None:
        """Kill the fetch, if there is one; it is gone when this returns. An ending that crossed with it may still come."""
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    def __init__(self, command: list[str], deadline_s: float, ended: Callable[[Outcome], None]) -> None:
        self._command, self._deadline, self._ended = command, time.monotonic() + deadline_s, ended
        self._lock, self._stopped = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._kill()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            found = self._outcome()
        except OSError as error:
            found = _failed(FailureCode.FETCH_DAMAGED, f"the fetch process cannot be run: {error}")
        if found is not None and not self._stopped:
            self._ended(found)

    def _outcome(self) -> Outcome | None:
        with self._lock:
            if self._stopped:
                return None
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        with process:  # closes the pipes, and waits for its end
            assert process.stdout is not None
            line = self._line(process.stdout.fileno())
            if not line.endswith(b"\n"):
                with self._lock:
                    self._kill()
        if time.monotonic() >= self._deadline:
            return _failed(FailureCode.FETCH_TOO_SLOW, "the fetch process was killed at its deadline")
        try:
            return outcome.decode(line)
        except Malformed as error:
            log.warning("fetch ended with status %s: %s", process.returncode, error)
            return _failed(FailureCode.FETCH_DAMAGED, f"the fetch process ended with status {process.returncode}")

    def _line(self, descriptor: int) -> bytes:
        """What it says, until it ends, says too much, or the deadline."""
        read, ready = bytearray(), select.poll()
        ready.register(descriptor, select.POLLIN)
        while len(read) <= LINE_BYTES_MAX:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or not ready.poll(left_s * 1000):
                break
            piece = os.read(descriptor, 4096)
            read += piece
            if not piece or read.endswith(b"\n"):
                return bytes(read)
        return b""

    def _kill(self) -> None:
        """With the lock held, and before it was waited for: the number cannot be anybody else's yet."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _failed(code: str, detail: str) -> Outcome:
    return Outcome(ok=False, code=code, detail=detail)
