"""One worker, from its start to its end: loading, ready, and then lost or stopped.

It answers in the order it was asked, so the oldest unanswered request is the one that a crash or a hang belongs to, and the
only one whose deadline runs. A worker whose head request is past its deadline is killed: the request goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, get_args

import msgspec

from holdfast_gateway.child import Child
from holdfast_gateway.confinement import Confinement
from holdfast_gateway.frames import BUFFER_BYTES, Frames, LostPlace
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import Loss
from holdfast_gateway.stream_end import StreamEnd
from holdfast_gateway.worker_output import WorkerOutput
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.wire.release import Limits
from holdfast_worker import protocol
from holdfast_worker.failures import LoadCode
from holdfast_worker.protocol import Answer, Failed, Hello, Kind, Load, Measured, Ready, Stop

log = logging.getLogger(__name__)

_ANSWER: Final = int(Kind.ANSWER)  # on every answer's way: a member of an enum takes long to look up
_LOAD_CODES: Final = frozenset(get_args(LoadCode))
_CODE_CHARACTERS_TOLD: Final = 40
# Asked ahead, so that the next request is there when an answer leaves. More would only be lost along with a crash.
ASKED_MAX: Final = 4
# From STOP to its exit; it has nothing left to answer then.
STOP_S: Final = 5.0


class Lost(NamedTuple):
    """A worker that is no more. `culprit` is the request it was at, `behind` what it had been asked besides.

    `killed`: by SIGKILL, which was neither ours nor its own memory limit's.
    """

    loss: Loss
    detail: str
    culprit: Inference | None
    culprit_ms: float
    behind: tuple[Inference, ...]
    killed: bool = False


class Owner(Protocol):
    """What becomes of a worker. Each is called from the event loop; `lost`, `refused` and `ended` once and last."""

    def ready(self, ready: Ready) -> None: ...

    def answered(self, inference: Inference, answer: Answer, latency_ms: float) -> None:
        """`latency_ms` is from when the worker had nothing older to answer. The body is good during the call."""

    def refused(self, failed: Failed) -> None:
        """It could not load, and says why."""

    def lost(self, lost: Lost) -> None: ...

    def ended(self) -> None:
        """It was stopped, and is gone."""


class Worker:
    """Started by `start`; speaks `holdfast_worker.protocol`."""

    def __init__(self, name: str, load: Load, limits: Limits, owner: Owner) -> None:
        self._load = load
        self._limits = limits
        self._owner = owner
        self._frames = Frames(self._received)
        self._loop = asyncio.get_running_loop()
        self._wire: StreamEnd | None = None
        self._child: Child | None = None
        self._said = WorkerOutput(name)
        self._output: asyncio.BaseTransport | None = None
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._measured: Measured | None = None
        self._greeted = self._ready = self._stopping = self._over = False
        self._next_id = 0
        self._head_since = 0.0
        self.asked: deque[Inference] = deque()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    @property
    def is_ready(self) -> bool:
        """It may be asked."""
        return self._ready and not self._stopping and not self._over

    @property
    def gone(self) -> bool:
        """Nothing is left of it: no process, no connection, no pipe."""
        ended = self._child is None or (self._child.reaped and self._said.closed)
        return self._over and ended and self._starting is None and self._wire is None

    def memory_bytes(self) -> int:
        return self._child.memory_bytes() if self._child is not None else 0

    # -- what is asked of it

    def start(self, command: Sequence[str], confinement: Confinement, variables: Mapping[str, str]) -> None:
        """Start the process, with `variables` in its environment besides our own.

        It is ready, or has failed, within the release's load deadline.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._loop.call_soon(self._lose, Loss.UNSTARTED, f"its process could not be started: {error}")
            return
        ours.setblocking(False)
        try:
            self._child = Child(command, theirs, confinement, self._limits.memory_bytes_max, variables)
        except OSError as error:
            ours.close()
            self._loop.call_soon(self._lose, Loss.UNSTARTED, f"its process could not be started: {error}")
            return
        finally:
            theirs.close()
        self._timer = self._loop.call_later(self._limits.load_deadline_s, self._load_is_late)
        self._starting = self._loop.create_task(self._connect(ours))

    def ask(self, inference: Inference) -> None:
        """Send it one more request; it must be ready, and `asked` shorter than ASKED_MAX."""
        if self._wire is None:  # its connection is gone, and it is about to be lost with all that it was asked
            self.asked.append(inference)
            return
        body = inference.body
        head = protocol.ask_head(
            self._next_id + len(self.asked),
            wants_binary=inference.wants_binary,
            header_length=inference.header_length,
            body_bytes=len(body),
        )
        if not self.asked:
            self._head_since = time.monotonic()
            if self._timer is None:
                self._timer = self._loop.call_later(self._limits.deadline_ms / 1000, self._look_at_head)
        self.asked.append(inference)
        if len(body) <= BUFFER_BYTES:
            self._wire.write(head + body)
        else:
            self._wire.write(head, body)

    def stop(self) -> None:
        """Let it answer what it was asked, and go. `ended` follows, at the latest STOP_S after its last answer is due."""
        if self._over or self._stopping:
            return
        self._stopping = True
        self._forget_timer()
        if self._wire is None or not self._ready:
            self.kill()
            return
        self._wire.write(protocol.control(Kind.STOP, Stop()))
        due_s = STOP_S + len(self.asked) * self._limits.deadline_ms / 1000
        self._timer = self._loop.call_later(due_s, self.kill)

    def kill(self) -> None:
        """End it now. What it had been asked is handed back by `lost`, or `ended` follows."""
        self._stopping = True
        if self.asked:
            self._lose(Loss.CRASH, "it was stopped", blameless=True)
        else:
            self._end()

    # -- what the event loop says

    async def _connect(self, ours: socket.socket) -> None:
        assert self._child is not None
        try:
            self._output, _ = await self._loop.connect_read_pipe(lambda: self._said, self._child.output)
            self._wire = StreamEnd(self._loop, ours, self)
            if self._over:  # it was killed while it was being started
                self._wire.close()
        except OSError as error:
            ours.close()
            self._lose(Loss.UNSTARTED, f"its connection could not be made: {error}")
        self._starting = None

    def room(self) -> memoryview:
        return self._frames.room()

    def filled(self, count: int) -> None:
        try:
            self._frames.filled(count)
        except (LostPlace, ValueError, msgspec.DecodeError) as error:
            self._lose(self._loss, f"it does not speak the worker protocol: {error}")

    def hung_up(self) -> None:
        self._wire = None
        if self._stopping and not self.asked:
            self._end()
        elif not self._over and self._child is not None:
            self._forget_timer()
            # Who is asked from here on never reached it, and is not to blame.
            self._child.once_ended(partial(self._lose, self._loss, "", blameless=not self.asked))

    # -- frames

    def _received(self, frame: memoryview) -> None:
        kind = frame[4]
        if kind == _ANSWER and self.asked:
            now = time.monotonic()  # the loop's own clock, without its detour
            answer = protocol.read_answer(frame)
            if answer.id != self._next_id:
                raise LostPlace(f"answer {answer.id} where {self._next_id} is due")
            self._next_id += 1
            if self._measured is not None:
                answer, self._measured = answer._replace(measured=self._measured), None
            latency_ms = (now - self._head_since) * 1000
            self._head_since = now
            self._owner.answered(self.asked.popleft(), answer, latency_ms)
        elif not self._over:
            self._received_control(kind, frame[5:])

    def _received_control(self, kind: int, body: memoryview) -> None:
        match kind:
            case Kind.HELLO if not self._greeted:
                self._greet(msgspec.json.decode(body, type=Hello))
            case Kind.READY if self._greeted and not self._ready:
                self._ready = True
                self._forget_timer()
                self._owner.ready(msgspec.json.decode(body, type=Ready))
            case Kind.MEASURED if self._ready:
                self._measured = msgspec.json.decode(body, type=Measured)
            case Kind.FAILED if not self._ready:
                self._refuse(_believed(msgspec.json.decode(body, type=Failed)))
            case _:
                raise LostPlace(f"a frame of kind {kind}, which is not due")

    def _greet(self, hello: Hello) -> None:
        self._greeted = True
        oldest = hello.version if hello.oldest is None else hello.oldest
        version = protocol.agreed(oldest, hello.version)
        if version is None:
            detail = (
                f"its worker speaks versions {oldest} to {hello.version} of the protocol, "
                f"this gateway {protocol.OLDEST} to {protocol.VERSION}"
            )
            self._refuse(Failed(code="not-supported", detail=detail))
            return
        assert self._wire is not None
        assert self._child is not None
        load = msgspec.structs.replace(self._load, version=version, isolated=self._child.isolated)
        self._wire.write(protocol.control(Kind.LOAD, load))

    def _refuse(self, failed: Failed) -> None:
        self._close()
        self._owner.refused(failed)

    # -- deadlines and the end

    @property
    def _loss(self) -> Loss:
        return Loss.CRASH if self._ready else Loss.LOAD

    def _load_is_late(self) -> None:
        self._timer = None
        self._lose(Loss.LATE, f"it was not ready within {self._limits.load_deadline_s} s (limits.load_deadline_s)")

    def _look_at_head(self) -> None:
        """One timer a worker, armed anew only when it fires: an answer in time costs nothing."""
        self._timer = None
        if not self.asked:
            return
        left_s = self._head_since + self._limits.deadline_ms / 1000 - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_at_head)
        else:
            self._lose(Loss.HANG, f"no answer within {self._limits.deadline_ms} ms (limits.deadline_ms)")

    def _lose(self, loss: Loss, detail: str, *, blameless: bool = False) -> None:
        if self._over:
            return
        culprit_ms = (self._loop.time() - self._head_since) * 1000
        asked = list(self.asked)
        self.asked.clear()
        killed = self._child is not None and self._child.killed_by_others
        if not detail and self._child is not None:
            detail = self._child.ending()
        self._close()
        culprit = asked.pop(0) if asked and not blameless else None
        self._owner.lost(Lost(loss, detail, culprit, culprit_ms, tuple(asked), killed))

    def _end(self) -> None:
        if not self._over:
            self._close()
            self._owner.ended()

    def _close(self) -> None:
        """Kill what is left of the process, and let go of everything."""
        self._over = True
        self._forget_timer()
        if self._child is not None:
            self._child.kill()
        if self._wire is not None:
            self._wire.close()
        if self._output is not None and self._starting is None:
            self._loop.call_later(STOP_S, self._output.close)  # its last words are still in the pipe

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _believed(failed: Failed) -> Failed:
    """A worker may be newer, or run a stranger's lines by now: what is no code of a worker's is a load that failed."""
    if failed.code in _LOAD_CODES:
        return failed
    return Failed(
        code=FailureCode.LOAD_FAILED, detail=f"{failed.detail} (it calls that {failed.code[:_CODE_CHARACTERS_TOLD]!r})"
    )
