"""A rollout drawn in the terminal: a bar for each wave, a line for each gate; and drawn again at every change until it ends.

It asks the server twice a second: that is no load, and it needs none of the server's few event streams.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from holdfast_cli import output, signed_command
from holdfast_cli.failures import EXIT_HALTED, Unreachable
from holdfast_cli.session import Session
from holdfast_shared.judgement import FLOORS

POLL_S: Final = 0.5
# The server may restart while somebody watches; longer than this and the person should know.
SILENCE_S: Final = 30.0
ENDED: Final = frozenset({"finished", "halted", "aborted"})
_VERDICT_MARKS: Final = {"pass": "✓", "fail": "✗", "insufficient": "…"}


def watch(session: Session, rollout_id: str, *, timeout_s: float | None) -> int:
    """Show every change of a rollout until it ends; the exit code. Raises Unreachable after a long silence or `timeout_s`."""
    shown: list[str] = []
    for found in _changes(session, rollout_id, timeout_s):
        if session.as_json:
            output.as_json(found)
            sys.stdout.flush()
        else:
            shown = _redraw(shown, drawn(found))
        if found["state"] in ENDED:
            return 0 if found["state"] == "finished" else EXIT_HALTED
    raise AssertionError("changes end with the rollout or with an error")


def drawn(rollout: Any) -> list[str]:
    """The lines of one rollout."""
    release = rollout["release"]["version"]
    previous = (rollout.get("previous") or {}).get("version") or "nothing"
    segment = output.plain(signed_command.segment_text(rollout["segment"]))
    does = "shadowed by" if rollout.get("shadow") else "→"
    title = f"{output.plain(rollout['pipeline'])} {output.plain(previous)} {does} {output.plain(release)}"
    name = click.style(output.plain(rollout["id"]), bold=True)
    lines = [f"{name}  {title}  {output.state(rollout['state'])}  {click.style(segment, dim=True)}"]
    largest = max((wave.get("cohort") or 0 for wave in rollout["waves"]), default=0)
    for wave in rollout["waves"]:
        lines += _wave(wave, largest)
    if rollout.get("cause"):
        lines.append(f"  {output.state(rollout['state'])}: {output.plain(rollout['cause'])}")
    return lines


def _wave(wave: Any, largest: int) -> list[str]:
    where = ", ".join(wave.get("regions") or ()) or "all regions"
    labels = output.labels(wave.get("labels"))
    bar = output.bar(wave.get("cohort") or 0, largest)
    which = output.plain(f"{where}, {labels}" if labels else where)
    reached = f"{wave.get('cohort')} devices ({output.share(wave.get('real_share'))})"
    given = f", {output.plain(wave['requests']['in_words'])}" if wave.get("requests") else ""
    asked = f"{output.share(wave['share']):>6} of {which}"
    lines = [f"  {wave['number']:>2}  {bar}  {asked}: {reached}{given}  {output.state(wave['state'])}"]
    if wave["state"] == "waiting":
        return lines
    for gate in wave.get("gates", []):
        counts = gate.get("devices") or {}
        mark = _VERDICT_MARKS.get(gate["verdict"], "?")
        side = "≥" if gate["metric"] in FLOORS else "≤"
        bound = f"{gate['metric']} {side} {gate['threshold']:.10g}"
        lines.append(
            f"        {mark} {bound}  {output.state(gate['verdict'])}  "
            + click.style(
                ", ".join(f"{counts.get(word, 0)} {word}" for word in ("pass", "fail", "insufficient")), dim=True
            )
        )
    return lines


def _redraw(before: list[str], now: list[str]) -> list[str]:
    """On a terminal the picture is replaced; elsewhere only the lines that changed are printed."""
    if sys.stdout.isatty():
        if before:
            click.echo(f"\x1b[{len(before)}F\x1b[J", nl=False)
        click.echo("\n".join(now))
    else:
        old = set(before)
        click.echo("\n".join(line for line in now if line not in old))
        sys.stdout.flush()
    return now


def _changes(session: Session, rollout_id: str, timeout_s: float | None) -> Iterator[Any]:
    """The rollout whenever it differs from what was last seen; ends after its last state."""
    began = heard = time.monotonic()
    last: Any = None
    while True:
        try:
            found = session.server.get("rollouts", rollout_id)
            heard = time.monotonic()
        except Unreachable:
            if last is None or time.monotonic() - heard > SILENCE_S:
                raise
            found = last
        if found != last:
            yield found
            last = found
            if found["state"] in ENDED:
                return
        if timeout_s is not None and time.monotonic() - began > timeout_s:
            raise Unreachable(
                f"{rollout_id} is still {last['state']} after {timeout_s:g} s",
                field="--timeout",
                next_step="watch it again",
            )
        time.sleep(POLL_S)
