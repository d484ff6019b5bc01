"""A gateway with a release that shadows: until it is so, and what it told of the requests it was asked."""

from __future__ import annotations

from typing import Final

from holdfast_gateway.control import AcknowledgeWindows, Route, SlotState, SlotStatus, Status
from holdfast_shared.assign import Target
from holdfast_shared.wire.report import ShadowCounts, Window
from support.gateway_bench import PIPELINE, AgentEnd, eventually

SUMMED: Final = ("requests", "dropped", "errors", "hangs", "nulls", "incomparable", "compared", "agreed")


def until_shadow(agent: AgentEnd, target: Target, state: SlotState, *, since: int = 0, saying: str = "") -> SlotStatus:
    def found(message: object) -> SlotStatus | None:
        shadows = message.shadows if isinstance(message, Status) else ()
        here = (one for one in shadows if (one.target, one.state) == (target, state))
        return next((one for one in here if saying in one.detail), None)

    return agent.until(found, since=since)


def shadowed(agent: AgentEnd, serving: Target, shadow: Target) -> SlotStatus:
    """1 serves and 2 shadows it, both ready."""
    agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=serving, shadow=shadow)))
    return until_shadow(agent, shadow, "ready")


class Told:
    """Every window that the gateway closed, taken and acknowledged as an agent does."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self._windows: dict[int, Window] = {}

    def of(self, target: Target) -> list[Window]:
        for one in self._agent.windows():
            self._windows[one.window] = one
        self._agent.say(AcknowledgeWindows(windows=tuple(self._windows)))
        return [one for one in self._windows.values() if one.release == target.release]

    def until(self, shadow: Target, asked: int) -> ShadowCounts:
        """Once so many requests are accounted for, and no more."""

        def all_told() -> ShadowCounts | None:
            parts = [one.shadow for one in self.of(shadow) if one.shadow is not None]
            found = ShadowCounts(**{name: sum(getattr(part, name) for part in parts) for name in SUMMED})
            assert found.requests + found.dropped <= asked
            return found if found.requests + found.dropped == asked else None

        found = eventually(all_told, f"not all of {asked} are accounted for")
        assert found is not None
        return found
