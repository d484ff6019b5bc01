"""A real worker process, spoken to as the gateway does. Every wait has a deadline."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from holdfast_agent.edge.layout import StateFolder
from holdfast_worker import protocol
from holdfast_worker.protocol import Answer, Failed, Hello, Kind, Load, Ready

T = TypeVar("T", Hello, Ready, Failed)

DEADLINE_S: Final = 30.0


class WorkerProcess:
    """`python -m holdfast_worker` at the other end of a socket pair."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast_worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )

    def hello(self) -> Hello:
        return self._control(Kind.HELLO, Hello)

    def send_load(self, state: StateFolder, release: str, **changes: Any) -> None:
        asked = Load(
            pipeline="digits",
            release=release,
            environment="system",
            manifests=str(state.manifests),
            blobs=str(state.blobs),
        )
        self.socket.sendall(protocol.control(Kind.LOAD, msgspec.structs.replace(asked, **changes)))

    def load(self, state: StateFolder, release: str, **changes: Any) -> Ready:
        """HELLO, LOAD, READY."""
        self.hello()
        self.send_load(state, release, **changes)
        return self._control(Kind.READY, Ready)

    def failure(self, state: StateFolder, release: str, **changes: Any) -> Failed:
        """HELLO, LOAD, FAILED, and the exit after it."""
        self.hello()
        self.send_load(state, release, **changes)
        failed = self._control(Kind.FAILED, Failed)
        assert self.exit_status() == 1
        return failed

    def ask(
        self, body: bytes, *, number: int = 1, header_length: int = protocol.NO_HEADER, wants_binary: bool = False
    ) -> None:
        head = protocol.ask_head(number, wants_binary=wants_binary, header_length=header_length, body_bytes=len(body))
        self.socket.sendall(head + body)

    def answer(self) -> Answer:
        frame = self.frame()
        assert frame is not None, "the worker is gone"
        assert frame[protocol.LENGTH.size] == Kind.ANSWER
        return protocol.read_answer(frame)

    def stop(self) -> None:
        self.socket.sendall(protocol.control(Kind.STOP, protocol.Stop()))

    def frame(self) -> memoryview | None:
        """The next whole frame, or None at the end of the stream."""
        head = self._exactly(protocol.LENGTH.size)
        if not head:
            return None
        (length,) = protocol.LENGTH.unpack(head)
        return memoryview(head + self._exactly(length))

    def exit_status(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait(timeout=DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _control(self, kind: Kind, message: type[T]) -> T:
        frame = self.frame()
        assert frame is not None, "the worker is gone"
        body = bytes(frame[protocol.LENGTH.size + 1 :])
        assert frame[protocol.LENGTH.size] == kind, body
        return msgspec.json.decode(body, type=message)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            if not more:
                return found
            found += more
        return found


@contextlib.contextmanager
def running_worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess()
    try:
        yield worker
    finally:
        worker.close()
