"""What is asked beside the slots of one pipeline: the release that shadows now, and those that are on their way out."""

from __future__ import annotations

import time
from collections.abc import Callable

from holdfast_gateway.bench import Bench
from holdfast_gateway.inference import Inference
from holdfast_gateway.shadow import Shadow
from holdfast_gateway.windows import Ledger
from holdfast_shared.assign import Target
from holdfast_worker.protocol import Answer


class Beside:
    """A shadow comes and goes whichever slots hold the same target. `changed` is called whenever its status is another."""

    def __init__(self, name: str, ledger: Ledger, bench: Bench, changed: Callable[[], None]) -> None:
        self.shadow: Shadow | None = None
        self._leaving: set[Shadow] = set()
        self._name, self._ledger, self._bench, self._changed = name, ledger, bench, changed

    def route(self, wanted: Target | None, *, serves: bool, starting_bytes: int) -> None:
        """Converge to it. May be repeated. `starting_bytes` is what slots that come first will take."""
        if self.shadow is not None and self.shadow.target != wanted:
            leaving, self.shadow = self.shadow, None
            self._leaving.add(leaving)
            leaving.retire()
        if self.shadow is None and wanted is not None:
            counts = self._ledger.counts_of(self._name, wanted, wall_us=time.time_ns() // 1000)
            self.shadow = Shadow(
                self._name, wanted, counts, self._bench, changed=self._changed, left=self._leaving.discard
            )
        if self.shadow is not None:
            self.shadow.settle(serves=serves, starting_bytes=starting_bytes)

    def tick(self, *, serves: bool, starting_bytes: int) -> None:
        """Once a second: measured, and started or let go as memory comes and goes."""
        if self.shadow is not None:
            self.shadow.measure_memory()
            self.shadow.settle(serves=serves, starting_bytes=starting_bytes)

    def offer(self, asked: Inference, answer: Answer) -> None:
        """What the serving slot has answered; the answer has left already."""
        if self.shadow is not None:
            self.shadow.offer(asked, answer)

    def kill(self) -> None:
        """End what is on its way out."""
        for one in list(self._leaving):
            one.kill()

    @property
    def empty(self) -> bool:
        return self.shadow is None and not self._leaving

    @property
    def keys(self) -> set[str]:
        """Of every target that is here."""
        return {self.shadow.target.key} if self.shadow is not None else set()
