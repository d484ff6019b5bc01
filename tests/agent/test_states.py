"""The table of states and their deadlines: the README's diagram is made from them, and is not stale."""

from __future__ import annotations

import re
from pathlib import Path

import holdfast_agent.core
from holdfast_agent.core.deadlines import DEADLINES
from holdfast_agent.core.record import State
from holdfast_agent.core.slots import TRANSITIONS

README = Path(holdfast_agent.core.__file__).parent / "README.md"
_PLACE = re.compile(r"(<!-- states: .*? -->\n)(.*?)(<!-- /states -->)", re.DOTALL)


def diagram() -> str:
    lines = [
        f"    {one.value} --> {other.value}: {'<br/>or '.join(ways)}" for (one, other), ways in TRANSITIONS.items()
    ]
    table = [f"| `{state}` | {found.after} | {found.counted} | `{found.to}` |" for state, found in DEADLINES.items()]
    head = ["| state | deadline | counts | then |", "|---|---|---|---|"]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> idle", *lines, "```", "", *head, *table, ""])


def test_the_diagram_in_the_readme_is_the_table() -> None:
    """Stale? `python tests/agent/test_states.py` writes it anew."""
    found = _PLACE.search(README.read_text())
    assert found is not None
    assert found.group(2) == diagram()


def test_every_state_is_reached_and_left() -> None:
    for state in State:
        assert any(to is state for _, to in TRANSITIONS)
        assert any(start is state for start, _ in TRANSITIONS)


def test_every_state_that_waits_for_somebody_has_a_deadline_and_a_way_out_by_it() -> None:
    """`idle` waits for nobody. Each way out is one of the table, and names the deadline."""
    assert set(State) - DEADLINES.keys() == {State.IDLE}
    for state, found in DEADLINES.items():
        assert "deadline" in TRANSITIONS[state, found.to]
    assert DEADLINES.keys() == {start for (start, _), ways in TRANSITIONS.items() if "deadline" in ways}


if __name__ == "__main__":
    README.write_text(_PLACE.sub(lambda found: found.group(1) + diagram() + found.group(3), README.read_text()))
