"""Requests that nobody can answer this moment, while a slot that could is being started: first come, first out.

Each waits at the longest as its slot says (`Slot.patience_s`), from the first moment that it had to; there is one timer for all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from holdfast_gateway.inference import Inference

# As many as wait for a worker that runs (`slot.WAITING_MAX`): it will be asked them all.
ROOM_MAX: Final = 128


class WaitingRoom:
    """`expired` is called with each that waited too long."""

    def __init__(self, expired: Callable[[Inference], None]) -> None:
        self._expired = expired
        self._waiting: deque[Inference] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self) -> bool:
        """Whether one more may enter. Where it is full, who has ended its side and may have gone leaves first."""
        if len(self._waiting) >= ROOM_MAX:
            leaving = [one for one in self._waiting if one.asker.ended]
            self._waiting = deque(one for one in self._waiting if not one.asker.ended)
            for inference in leaving:
                self._expired(inference)
        return len(self._waiting) < ROOM_MAX

    def enter(self, inference: Inference, patience_s: float) -> None:
        """Have it wait. One that waited before has what was left of its time."""
        if inference.waits_until is None:
            inference.waits_until = self._loop.time() + patience_s
        self._waiting.append(inference)
        if self._timer is None or self._timer.when() > inference.waits_until:
            self._forget_timer()
            self._timer = self._loop.call_at(inference.waits_until, self._look)

    def all_out(self, deadline_s: float | None = None) -> tuple[Inference, ...]:
        """Everyone leaves. Who still cannot be answered may enter again.

        Who has ended its side, and waited longer than `deadline_s`, has gone as a rule: it is not worth a worker's time.
        """
        out, now = tuple(self._waiting), time.monotonic()
        self._waiting.clear()
        self._forget_timer()
        if deadline_s is None:
            return out
        gone = {one for one in out if one.asker.ended and now - one.since > deadline_s}
        for inference in gone:
            self._expired(inference)
        return tuple(one for one in out if one not in gone)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = [one for one in self._waiting if (one.waits_until or 0.0) <= now]
        self._waiting = deque(one for one in self._waiting if (one.waits_until or 0.0) > now)
        if self._waiting:
            due = min(one.waits_until or 0.0 for one in self._waiting)
            self._timer = self._loop.call_at(due, self._look)
        for inference in late:
            self._expired(inference)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
