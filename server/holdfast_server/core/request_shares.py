"""Shares of the *requests* of a wave's devices: what each wave gives, and that a rollout ends with all of them.

Waves may walk through devices, through shares of their requests, or both. A device in several released waves has the largest of
their shares. What a finished rollout leaves behind is served whole, so a plan ends with waves that give all requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from holdfast_server.core.plan import Plan, Wave
from holdfast_server.core.segments import covers
from holdfast_shared import cohort
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.command import RolloutPlan, WavePlan

# Above every share: without one a device commits the release.
_WHOLE: Final = cohort.BUCKETS + 1


def given_by(asked: RolloutPlan, wave: WavePlan, *, field: str) -> Requests | None:
    """The requests that the wave gives to the release; None: all of them, in a trial that commits."""
    plan = asked.requests
    share = wave.requests if wave.requests is not None else plan.share if plan is not None else cohort.BUCKETS
    segment = plan.segment if plan is not None else ()
    if share == 0:
        named = f"{field}.requests" if wave.requests is not None else "requests.share"
        raise Malformed("a share of 0 gives it no request", field=named, next_step="give 1 to 10000")
    return None if share == cohort.BUCKETS and not segment else Requests(share=share, segment=segment)


def weight(requests: Requests | None) -> int:
    """By which one is less than another: of one plan all have the same segment."""
    return _WHOLE if requests is None else requests.share


def reached(waves: Sequence[Wave], cohorts: Sequence[set[str]], requests: Requests | None) -> set[str]:
    """The devices that these waves give so many requests, or more."""
    enough = (inside for wave, inside in zip(waves, cohorts, strict=True) if weight(wave.requests) >= weight(requests))
    return set().union(*enough)


def widest_first(waves: Iterable[Wave]) -> list[Wave]:
    """As a document's rules stand: a device reads the largest share first, and of these the one of most devices."""
    return sorted(waves, key=lambda wave: (-weight(wave.requests), -wave.below, wave.number))


def completed(waves: Sequence[Wave]) -> tuple[tuple[Wave, ...], tuple[str, ...]]:
    """With the waves that give all requests to those who would still have a share in the end, and what to say about it."""
    added: list[Wave] = []
    notes = []
    for wave in widest_first(waves):
        if any(_gives_all(one, wave) for one in (*waves, *added)):
            continue
        number = len(waves) + len(added) + 1
        added.append(msgspec.structs.replace(wave, number=number, adds=0, requests=None))
        notes.append(f"wave {number} gives the devices of wave {wave.number} all their requests: so a rollout ends")
    return (*waves, *added), tuple(notes)


def check_others_are_answered(plan: Plan) -> None:
    """Raises Malformed for shares where no release serves that could answer the other requests: no device could begin."""
    if plan.previous is None and any(wave.requests is not None for wave in plan.waves):
        raise Malformed(
            "it is to get a share of the requests, and its devices have no release that could answer the others",
            field="requests",
            next_step="leave the share out: a first release gets all requests",
        )


def _gives_all(one: Wave, wave: Wave) -> bool:
    return one.requests is None and one.below >= wave.below and covers(one.match, wave.match)
