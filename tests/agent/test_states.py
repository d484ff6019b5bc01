"""The table of states: the README's diagram is made from it, and is not stale."""

from __future__ import annotations

import re
from pathlib import Path

import holdfast_agent.core
from holdfast_agent.core.record import State
from holdfast_agent.core.slots import TRANSITIONS

README = Path(holdfast_agent.core.__file__).parent / "README.md"
_PLACE = re.compile(r"(<!-- states: .*? -->\n)(.*?)(<!-- /states -->)", re.DOTALL)


def diagram() -> str:
    lines = [f"    {one.value} --> {other.value}: {why}" for (one, other), why in TRANSITIONS.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> idle", *lines, "```", ""])


def test_the_diagram_in_the_readme_is_the_table() -> None:
    """Stale? Replace what stands between the marks by what this assertion shows."""
    found = _PLACE.search(README.read_text())
    assert found is not None
    assert found.group(2) == diagram()


def test_every_state_but_shadowing_is_reached_and_left() -> None:
    """No rule of this version leads to shadowing; each other state has a way in, and a way out."""
    for state in State:
        if state is not State.SHADOWING:
            assert any(to is state for _, to in TRANSITIONS)
            assert any(start is state for start, _ in TRANSITIONS)
