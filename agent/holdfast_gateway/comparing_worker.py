"""The worker of a release that shadows: it is asked COMPARE, one at a time, and tells how its answers compare.

In all else it is a worker like the others: the same process, confinement, deadlines and end.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from holdfast_gateway.frames import LostPlace
from holdfast_gateway.losses import SHADOW_PATIENCE
from holdfast_gateway.shadow_queue import Shadowed
from holdfast_gateway.worker import Owner, Worker
from holdfast_shared.wire.release import Limits
from holdfast_worker import protocol
from holdfast_worker.protocol import COMPARES, LENGTH, Compared, Failed, Hello, Kind, Load


class ComparingOwner(Owner, Protocol):
    """What becomes of it."""

    def compared(self, asked: Shadowed, told: Compared) -> None: ...


class ComparingWorker(Worker):
    """`compare` instead of `ask`."""

    def __init__(self, name: str, load: Load, limits: Limits, owner: ComparingOwner) -> None:
        super().__init__(name, load, _patient(limits), owner)
        self._comparing_owner = owner

    def compare(self, asked: Shadowed) -> None:
        """Send it one; it must be ready, and have been asked nothing that it has not answered."""
        assert not self.asked
        if self._wire is None:  # its connection is gone, and it is about to be lost with all that it was asked
            self.asked.append(asked)
            return
        head = protocol.compare_head(
            self._next_id,
            request_header_length=asked.header_length,
            answer_header_length=asked.answer_header_length,
            request_bytes=len(asked.body),
            answer_bytes=len(asked.answer),
        )
        self._head_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.deadline_ms / 1000, self._look_at_head)
        self.asked.append(asked)
        self._wire.write(head, asked.body, asked.answer)

    def _greet(self, hello: Hello) -> None:
        """Refused where it cannot compare: its environment's worker is older than shadows are."""
        if min(hello.version, protocol.VERSION) >= COMPARES:
            super()._greet(hello)
            return
        detail = (
            f"its worker speaks versions up to {hello.version} of the protocol, and to shadow takes {COMPARES}: give its"
            " environment a newer worker"
        )
        self._refuse(Failed(code="not-supported", detail=detail))

    def _received(self, frame: memoryview) -> None:
        kind = frame[LENGTH.size]
        if kind == Kind.ANSWER:  # before the request is taken for settled: it is lost with its worker, and counted so
            raise LostPlace("an answer where a comparison is due")
        if kind != Kind.COMPARED or not self.asked:
            super()._received(frame)
            return
        told = protocol.decode_compared(frame)
        if told.id != self._next_id:
            raise LostPlace(f"comparison {told.id} where {self._next_id} is due")
        self._next_id += 1
        asked = self.asked.popleft()
        assert isinstance(asked, Shadowed)
        self._comparing_owner.compared(asked, told)


def _patient(limits: Limits) -> Limits:
    return msgspec.structs.replace(
        limits,
        deadline_ms=limits.deadline_ms * SHADOW_PATIENCE,
        load_deadline_s=limits.load_deadline_s * SHADOW_PATIENCE,
    )
