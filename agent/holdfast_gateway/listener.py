"""What a pipeline tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from holdfast_gateway.slot import Slot
    from holdfast_shared.assign import Target


class Listener(Protocol):
    """Who is told what happens here: the gateway, for the agent."""

    def status_changed(self) -> None: ...

    def failure_counted(self, slot: Slot) -> None: ...

    def switched(self, pipeline: str, target: Target, at_s: float) -> None:
        """The first good answer of a slot since it began to serve."""
