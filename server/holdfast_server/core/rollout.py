"""A rollout as a machine: one frozen record, events in, commands out. It never looks at a clock or a device.

- A wave is released only after the one before it passed; a failed verdict latches and ends the rollout.
- A verdict that does not come by the deadline pauses it, with the reason: it is never taken for a pass.
- Pausing lets no further device begin; those that serve the release keep it, and are still watched.
- A late or doubled event changes nothing. The record is saved before its commands are carried out, and each may be repeated.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, assert_never

import msgspec

from holdfast_server.core.plan import Plan, Wave
from holdfast_server.core.returning import Returning
from holdfast_server.core.verdict import WaveVerdict
from holdfast_shared.errors import Conflict
from holdfast_shared.judgement import Verdict

SECOND_US: Final = 1_000_000


class State(StrEnum):
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    FINISHED = "finished"
    ABORTED = "aborted"


class WaveState(StrEnum):
    WAITING = "waiting"
    RELEASED = "released"
    PASSED = "passed"
    FAILED = "failed"


ACTIVE: Final = frozenset({State.RUNNING, State.PAUSED})


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Now, on the wall and on this boot's monotonic clock, in microseconds."""

    at: int
    monotonic_us: int


class WaveProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one wave is. `deadline_at` counts only while the rollout runs: a resume sets it anew. Whoever resumes it has seen
    what drifted until then, so drift is counted from there, and nothing else is.
    """

    state: WaveState = WaveState.WAITING
    released_at: int | None = None
    passed_at: int | None = None
    deadline_at: int | None = None
    resumed_at: int | None = None
    verdict: WaveVerdict | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """`cause`: why it is where it is, in words. `halted`: when the breach was decided."""

    plan: Plan
    planned_by: str
    planned_at: int
    state: State = State.PLANNED
    waves: tuple[WaveProgress, ...] = ()
    cause: str = ""
    started_at: int | None = None
    ended_at: int | None = None
    halted: Moment | None = None
    returning: Returning = Returning()

    @property
    def id(self) -> str:
        return self.plan.rollout

    @property
    def released(self) -> int:
        """How many waves have been released. They are released in order, so this is also the number of the last."""
        return sum(wave.state is not WaveState.WAITING for wave in self.waves)

    @property
    def current(self) -> Wave | None:
        return self.plan.waves[self.released - 1] if self.released else None


def planned(plan: Plan, *, by: str, now: Moment) -> Rollout:
    return Rollout(plan=plan, planned_by=by, planned_at=now.at, waves=tuple(WaveProgress() for _ in plan.waves))


class Start(msgspec.Struct, frozen=True, kw_only=True):
    by: str


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    by: str


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    by: str


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    by: str


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict on the wave it names; on any other than the current one it is late."""

    verdict: WaveVerdict


class TakenBack(msgspec.Struct, frozen=True, kw_only=True):
    """Its release was taken back by people, from all of its segment (`whole`) or from a part."""

    rollback: str
    whole: bool


Event = Start | Pause | Resume | Abort | Judged | TakenBack


class Compose(msgspec.Struct, frozen=True, kw_only=True):
    """Write the documents of all regions anew, and issue those that changed."""


class Condemn(msgspec.Struct, frozen=True, kw_only=True):
    """Condemn the release in the rollout's segment."""

    incident: str


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """Make the release the base of what the rollout reached."""


class Decide(msgspec.Struct, frozen=True, kw_only=True):
    """Store a decision with its evidence."""

    what: str
    why: str
    verdict: WaveVerdict | None = None


Command = Compose | Condemn | Fold | Decide


class Step(NamedTuple):
    record: Rollout
    commands: tuple[Command, ...] = ()


def incident_of(rollout: Rollout) -> str:
    return f"{rollout.id}-halt"


def step(rollout: Rollout, event: Event, now: Moment) -> Step:
    """One event. Raises Conflict when an operator asks for what its state does not allow; reports are never refused."""
    match event:
        case Start():
            _require(rollout, "start", State.PLANNED)
            begun = msgspec.structs.replace(
                rollout, state=State.RUNNING, started_at=now.at, cause=f"started by {event.by}"
            )
            return _release_next(begun, now, what="rollout started", why=f"started by {event.by}")
        case Pause():
            _require(rollout, "pause", State.RUNNING)
            return _decided(rollout, State.PAUSED, "rollout paused", f"paused by {event.by}")
        case Resume():
            _require(rollout, "resume", State.PAUSED)
            return _resumed(rollout, event.by, now)
        case Abort():
            _require(rollout, "abort", State.PLANNED, State.RUNNING, State.PAUSED)
            ended = msgspec.structs.replace(rollout, ended_at=now.at)
            return _decided(ended, State.ABORTED, "rollout aborted", f"aborted by {event.by}")
        case Judged():
            return _judged(rollout, event.verdict, now)
        case TakenBack():
            return _taken_back(rollout, event, now)
        case _:
            assert_never(event)


def resume(rollout: Rollout) -> tuple[Command, ...]:
    """What a restarted server does for it: its documents, once more. They are issued only if they changed."""
    return (Compose(),) if rollout.state in ACTIVE else ()


def _require(rollout: Rollout, verb: str, *states: State) -> None:
    if rollout.state not in states:
        raise Conflict(
            f"rollout {rollout.id} is {rollout.state}; only one that is {' or '.join(states)} can {verb}"
            + (f" ({rollout.cause})" if rollout.cause else ""),
            field="rollout",
            next_step=f"look at: holdfast rollout status {rollout.id}",
        )


def _decided(rollout: Rollout, state: State, what: str, why: str, verdict: WaveVerdict | None = None) -> Step:
    return Step(
        msgspec.structs.replace(rollout, state=state, cause=why),
        (Compose(), Decide(what=what, why=why, verdict=verdict)),
    )


def _release_next(rollout: Rollout, now: Moment, *, what: str, why: str, verdict: WaveVerdict | None = None) -> Step:
    number = rollout.released
    progress = WaveProgress(
        state=WaveState.RELEASED, released_at=now.at, deadline_at=now.at + rollout.plan.deadline_s * SECOND_US
    )
    record = _with_wave(rollout, number, progress)
    released = f"wave {number + 1} of {len(rollout.waves)} released"
    return Step(record, (Compose(), Decide(what=f"{what}; {released}", why=why, verdict=verdict)))


def _with_wave(rollout: Rollout, index: int, progress: WaveProgress) -> Rollout:
    return msgspec.structs.replace(rollout, waves=(*rollout.waves[:index], progress, *rollout.waves[index + 1 :]))


def _resumed(rollout: Rollout, by: str, now: Moment) -> Step:
    index = rollout.released - 1
    deadline_at = now.at + rollout.plan.deadline_s * SECOND_US
    wave = msgspec.structs.replace(rollout.waves[index], deadline_at=deadline_at, resumed_at=now.at)
    record = _with_wave(rollout, index, wave)
    return _decided(record, State.RUNNING, "rollout resumed", f"resumed by {by}")


def _judged(rollout: Rollout, verdict: WaveVerdict, now: Moment) -> Step:
    if rollout.state not in ACTIVE or verdict.wave != rollout.released:
        return Step(rollout)
    index = rollout.released - 1
    wave = msgspec.structs.replace(rollout.waves[index], verdict=verdict)
    record = _with_wave(rollout, index, wave)
    match verdict.verdict:
        case Verdict.FAIL if verdict.drift_only:  # drift stops a rollout and takes nothing back
            if rollout.state is not State.RUNNING:
                return Step(record)
            return _decided(record, State.PAUSED, "rollout paused", f"it may be the data: {verdict.why}", verdict)
        case Verdict.FAIL:
            return _halted(record, wave, verdict, now)
        case Verdict.PASS if rollout.state is State.RUNNING:
            return _passed(record, wave, verdict, now)
        case Verdict.INSUFFICIENT if rollout.state is State.RUNNING and _overdue(wave, now):
            why = f"wave {verdict.wave} had no verdict by its deadline: {verdict.why}"
            return _decided(record, State.PAUSED, "rollout paused", why, verdict)
        case _:
            return Step(record)


def _overdue(wave: WaveProgress, now: Moment) -> bool:
    return wave.deadline_at is not None and now.at >= wave.deadline_at


def _halted(rollout: Rollout, wave: WaveProgress, verdict: WaveVerdict, now: Moment) -> Step:
    record = _with_wave(rollout, rollout.released - 1, msgspec.structs.replace(wave, state=WaveState.FAILED))
    record = msgspec.structs.replace(record, ended_at=now.at, halted=now)
    if rollout.plan.shadow is not None:  # it answered nobody: there is nothing to take back
        why = f"{verdict.why}; its devices shadow with it no more"
        return _decided(record, State.HALTED, "rollout halted", why, verdict)
    previous = rollout.plan.previous
    back = (
        f"devices that serve it go back to {previous.version}"
        if previous is not None
        else "there is no earlier release to go back to: devices stay as they are, and no further one begins"
    )
    halted = _decided(record, State.HALTED, "rollout halted", f"{verdict.why}; {back}", verdict)
    return Step(halted.record, (Condemn(incident=incident_of(rollout)), *halted.commands))


def _passed(rollout: Rollout, wave: WaveProgress, verdict: WaveVerdict, now: Moment) -> Step:
    passed = msgspec.structs.replace(wave, state=WaveState.PASSED, passed_at=now.at)
    record = _with_wave(rollout, rollout.released - 1, passed)
    if record.released < len(record.waves):
        return _release_next(record, now, what=f"wave {verdict.wave} passed", why=verdict.why, verdict=verdict)
    ended = msgspec.structs.replace(record, ended_at=now.at)
    finished = _decided(
        ended, State.FINISHED, "rollout finished", f"wave {verdict.wave}, the last, passed: {verdict.why}"
    )
    fold = () if rollout.plan.shadow is not None else (Fold(),)
    return Step(
        finished.record,
        (*fold, Compose(), Decide(what="rollout finished", why=finished.record.cause, verdict=verdict)),
    )


def _taken_back(rollout: Rollout, event: TakenBack, now: Moment) -> Step:
    """All of it ends; a part of it pauses, so that a person says whether the rest goes on."""
    if rollout.state not in (*ACTIVE, State.PLANNED):
        return Step(rollout)
    if event.whole:
        record = msgspec.structs.replace(rollout, ended_at=now.at, halted=now)
        return _decided(record, State.HALTED, "rollout halted", f"its release was taken back by {event.rollback}")
    if rollout.state is State.RUNNING:
        why = f"its release was taken back from a part of its segment by {event.rollback}"
        return _decided(rollout, State.PAUSED, "rollout paused", why)
    return Step(rollout)
