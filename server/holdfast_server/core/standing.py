"""All that stands for one pipeline, and how it changes: by a rollout's commands, and by a rollback that two people signed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast_server.core import rollout as machine
from holdfast_server.core.base_rules import BaseRule, folded, release_for, releases_in, returns_to, taken_back
from holdfast_server.core.plan import Plan
from holdfast_server.core.release_in import ReleaseIn, Taken, in_environment
from holdfast_server.core.rollback import Rollback
from holdfast_server.core.rollout import ACTIVE, Condemn, Fold, Moment, Rollout, Step
from holdfast_server.core.segments import Match, covers
from holdfast_shared import cohort, selector
from holdfast_shared.errors import Conflict, Malformed
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import Release


class Condemnation(msgspec.Struct, frozen=True, kw_only=True):
    """A release that may not run in a segment; with `environment`, only the pair may not; without a release, nothing may run in
    that environment there. It stays until it is retired.
    """

    incident: str
    match: Match
    release: ReleaseRef | None
    environment: str | None = None

    @property
    def taken(self) -> Taken:
        return Taken(release=self.release, environment=self.environment)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`base` newest first, `condemned` oldest first; `rollouts`: those that are planned or active."""

    base: tuple[BaseRule, ...] = ()
    condemned: tuple[Condemnation, ...] = ()
    rollouts: tuple[Rollout, ...] = ()

    def condemnation_of(self, release: ReleaseIn, segment: Match) -> Condemnation | None:
        """The first condemnation of the release in its environment that a device of the segment could fall under."""
        return next(
            (one for one in self.condemned if one.taken.holds(release) and not selector.disjoint(one.match, segment)),
            None,
        )

    def changes_environment(self, release: ReleaseIn, segment: Match) -> bool:
        """Whether devices of the segment have this release already, in another environment."""
        return any(
            rule.release.digest == release.digest
            and rule.release.environment != release.environment
            and not selector.disjoint(rule.match, segment)
            for rule in self.base
        )


def check_free(standing: Standing, plan: Plan) -> None:
    """Raises Conflict when the plan contradicts what stands: asked when it is made, and again when it is started."""
    where = selector.written(plan.segment)
    for other in standing.rollouts:
        if (
            other.state in ACTIVE
            and other.id != plan.rollout
            and not selector.disjoint(other.plan.segment, plan.segment)
        ):
            raise Conflict(
                f"rollout {other.id} of {other.plan.release.version} is {other.state} on {selector.written(other.plan.segment)}, "
                f"which overlaps {where}",
                field="segment",
                next_step=f"wait for it, abort it (holdfast rollout abort {other.id}), or choose other devices",
                code="overlap",
            )
    condemned = standing.condemnation_of(plan.release, plan.segment)
    if condemned is not None:
        raise Conflict(
            f"{condemned.taken.words} is condemned for {selector.written(condemned.match)} by {condemned.incident}",
            field="version",
            next_step="publish a corrected version, or choose another environment or other devices",
            code="condemned",
        )
    for rule in standing.base:
        whole = rule.below >= cohort.BUCKETS
        if whole and rule.release.key == plan.release.key and not selector.disjoint(rule.match, plan.segment):
            raise Conflict(
                f"{selector.written(rule.match)} has {plan.release.version} already",
                field="version",
                next_step="choose another version, or only devices that do not have it",
                code="same-release",
            )


def with_previous(standing: Standing, plan: Plan) -> Plan:
    """The plan, saying what its devices would return to: the base of its whole segment, else of most of it, else nothing."""
    previous = release_for(standing.base, plan.segment)
    if previous is None:
        partly = [rule.release for rule in standing.base if not selector.disjoint(rule.match, plan.segment)]
        previous = partly[-1] if partly else None
    return msgspec.structs.replace(plan, previous=previous)


def after_step(standing: Standing, step: Step) -> Standing:
    """What stands after a rollout's step: its commands `Fold` and `Condemn`, and the rollout as it is now."""
    record = step.record
    base, condemned = standing.base, standing.condemned
    for command in step.commands:
        if isinstance(command, Fold):
            base = folded(base, record.plan)
        elif isinstance(command, Condemn):
            condemned = _with(
                condemned,
                _condemnation(standing, record.plan, command.incident),
            )
    others = tuple(one for one in standing.rollouts if one.id != record.id)
    live = (record,) if record.state in (machine.State.PLANNED, *ACTIVE) else ()
    return Standing(base=base, condemned=condemned, rollouts=(*others, *live))


def _condemnation(standing: Standing, plan: Plan, incident: str) -> Condemnation:
    """Of a plan that failed: the pair, where the same release did well in another environment; else the release."""
    pair = standing.changes_environment(plan.release, plan.segment)
    return Condemnation(
        incident=incident,
        match=plan.segment,
        release=plan.release.ref,
        environment=plan.release.environment if pair else None,
    )


def after_rollback(standing: Standing, rollback: Rollback, now: Moment) -> tuple[Standing, tuple[Step, ...]]:
    """What stands once the rollback is accepted, and what it does to rollouts of the same release."""
    steps: list[Step] = []
    taken = rollback.taken
    entry = Condemnation(
        incident=rollback.id, match=rollback.segment, release=taken.release, environment=taken.environment
    )
    goals = (rollback.to, *rollback.also)
    changed = Standing(
        base=taken_back(standing.base, rollback.segment, taken, goals, cause=rollback.id),
        condemned=_with(standing.condemned, entry),
        rollouts=standing.rollouts,
    )
    for one in standing.rollouts:
        if taken.holds(one.plan.release) and not selector.disjoint(one.plan.segment, rollback.segment):
            whole = covers(rollback.segment, one.plan.segment)
            step = machine.step(one, machine.TakenBack(rollback=rollback.id, whole=whole), now)
            steps.append(step)
            changed = after_step(changed, step)
    return changed, tuple(steps)


def destination(standing: Standing, segment: Match, taken: Taken, to: ReleaseIn | None) -> ReleaseIn:
    """What the segment goes back to. Raises Malformed when that is not clear, Conflict when it is condemned there."""
    if to is None:
        options = [
            one
            for one in returns_to(standing.base, segment, taken)
            if not taken.holds(one) and standing.condemnation_of(one, segment) is None
        ]
        if len(options) != 1:
            known = " or ".join(one.version for one in options)
            raise Malformed(
                f"{selector.written(segment)} has no one release to go back to"
                + (f": it could be {known}" if known else ": nothing good ran there before"),
                field="to",
                next_step="name a published version with `to`",
            )
        return options[0]
    if taken.holds(to):
        raise Malformed(
            f"{to.version} cannot go back to itself",
            field="to" if taken.environment is None else "to_environment",
            next_step="name another, or leave it out",
        )
    condemned = standing.condemnation_of(to, segment)
    if condemned is not None:
        raise Conflict(
            f"{condemned.taken.words} is condemned for {selector.written(condemned.match)} by {condemned.incident}",
            field="to",
            next_step="name another version",
            code="condemned",
        )
    _check_nobody_else_moves(standing, segment, taken, to)
    return to


def other_environment(
    standing: Standing, segment: Match, pair: ReleaseIn, release: Release, wanted: str | None
) -> ReleaseIn:
    """Where a release goes on whose environment is taken back: as asked; else as before; else in the first other it names.

    Raises Malformed when it was validated in no other, or not in the one that was asked for.
    """
    if wanted is not None and wanted not in release.environments:
        raise Malformed(
            f"{release.version} was not validated in {wanted}",
            field="to_environment",
            next_step=f"name one of {', '.join(release.environments)}",
        )
    taken = Taken(release=pair.ref, environment=pair.environment)
    before = [one.environment for one in returns_to(standing.base, segment, taken) if one.digest == pair.digest]
    for environment in (wanted,) if wanted is not None else (*before, *release.environments):
        to = in_environment(pair.ref, environment)
        if wanted is not None or (not taken.holds(to) and standing.condemnation_of(to, segment) is None):
            return to
    raise Malformed(
        f"{release.version} was validated in no other environment that may run there",
        field="environment",
        next_step="take the version back instead: leave `environment` out",
    )


def _check_nobody_else_moves(standing: Standing, segment: Match, taken: Taken, to: ReleaseIn) -> None:
    """Raises Malformed for a rollback of what is nobody's base to what is not the base: it would move only others."""
    base = releases_in(standing.base, segment)
    if not base or any(taken.holds(one) for one in base) or {one.key for one in base} == {to.key}:
        return
    known = " and ".join(one.version for one in base)
    raise Malformed(
        f"{taken.words} is not what {selector.written(segment)} was given, but {known}: {to.version} would replace that",
        field="to",
        next_step=f"leave `to` out, or take {base[0].version} back, or choose only devices that serve {taken.words}",
    )


def _with(condemned: Sequence[Condemnation], entry: Condemnation) -> tuple[Condemnation, ...]:
    """The entry last; said already, it is not said twice."""
    if any(one.taken.includes(entry.taken) and covers(one.match, entry.match) for one in condemned):
        return tuple(condemned)
    return (*condemned, entry)
