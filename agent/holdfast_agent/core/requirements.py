"""What releases require of each other on one device, asked at every switch.

- Forward: a switch that would leave a requirement unmet, its own or another pipeline's, waits until it would not.
- Back: never waits. Pipelines whose requirements would be unmet go back with it, each to its other slot, in the same save; if
  that cannot be had for all of them, the one goes back alone. What is unmet then is told.

A version counts from when it serves, on trial too: if the trial fails, what went forward because of it goes back with it. Of a
trial of a share of the requests both versions count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from holdfast_agent.core.device import Device
from holdfast_agent.core.intent import refuge_of, usable
from holdfast_shared.assign import Target
from holdfast_shared.requirement import in_words, meets
from holdfast_shared.wire.release import Requirement


class Unmet(NamedTuple):
    """`pipeline` serves `version`, which requires what is not so: `found` serves there, or nothing."""

    pipeline: str
    version: str
    requirement: Requirement
    found: str

    @property
    def kind(self) -> tuple[str, Requirement]:
        """The same before and after a switch of the other pipeline that does not help."""
        return self.pipeline, self.requirement

    def __str__(self) -> str:
        found = f"{self.found} serves here" if self.found else "it does not serve here"
        return f"{self.pipeline} {self.version} requires {in_words(self.requirement)}; {found}"


def unmet(device: Device, moves: Mapping[str, Target] | None = None) -> list[Unmet]:
    """Every requirement that is not met by what serves, or would not be after these moves."""
    answering = {name: device.record.pipeline(name).answering for name in device.names}
    answering |= {name: (target,) for name, target in (moves or {}).items()}
    found = []
    for name, target in ((name, one) for name, targets in answering.items() for one in targets):
        release = device.release_of(target)
        for wanted in release.requires if release is not None else ():
            versions = [one.release.version for one in answering.get(wanted.pipeline, ())] or [""]
            wrong = next((one for one in versions if not one or not meets(one, wanted)), None)
            if wrong is not None:
                found.append(Unmet(name, target.release.version, wanted, wrong))
    return found


def in_the_way(device: Device, name: str, target: Target) -> str:
    """Why the pipeline may not go forward to that target yet, or nothing."""
    before = {one.kind for one in unmet(device)}
    for one in unmet(device, {name: target}):
        if one.pipeline == name or one.kind not in before:
            return str(one)
    return ""


def going_back(device: Device, name: str, to: Target) -> dict[str, Target]:
    """Everything that switches when `name` goes back to that slot, `name` included: the closure, or `name` alone.

    Each pipeline has one other slot, so each is moved at most once.
    """
    alone = {name: to}
    moves, before = dict(alone), {one.kind for one in unmet(device)}
    while True:  # at most once for each pipeline
        wrong = next((one for one in unmet(device, moves) if one.kind not in before), None)
        if wrong is None:
            return moves
        left = next((one for one in (wrong.pipeline, wrong.requirement.pipeline) if one not in moves), None)
        other = refuge_of(device, left) if left is not None else None
        if left is None or other is None or not usable(device, left, other):
            return alone
        moves[left] = other
