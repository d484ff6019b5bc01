"""What happens to slots: one function for each change of a pipeline's record, and the table of its states.

- What serves changes only in `begin_trial`, `drop_candidate`, `fall_back`, `adopt` and `clear`; each but the last adds an
  activation.
- No function here gives up the only good slot: the caller says which slot is good, and it ends as `current`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast_agent.core.record import (
    ACTIVATIONS_MAX,
    CONDEMNED_HERE_MAX,
    Activation,
    Attempts,
    Condemnation,
    PipelineRecord,
    State,
)
from holdfast_shared.assign import Target

_IDLE, _FETCHING, _STAGED, _TESTING, _TRIAL, _FALLING = (
    State.IDLE,
    State.FETCHING,
    State.STAGED,
    State.SELF_TESTING,
    State.TRIAL,
    State.FALLING_BACK,
)
# From, to, why: the whole machine. Any other change of state is a bug of ours.
TRANSITIONS: Final[dict[tuple[State, State], str]] = {
    (_IDLE, _FETCHING): "a target that is not in its slot",
    (_FETCHING, _STAGED): "downloaded and verified",
    (_FETCHING, _IDLE): "failed (waits longer each time), superseded, or a standby is in its slot",
    (_STAGED, _TESTING): "allowed to go forward",
    (_STAGED, _IDLE): "superseded",
    (_TESTING, _TRIAL): "the self-test passed",
    (_TESTING, _IDLE): "failed (condemned here), superseded, or only staged",
    (_TESTING, _FALLING): "passed, and what serves is condemned, so no trial",
    (_TRIAL, _IDLE): "committed, or superseded and dropped",
    (_TRIAL, _FALLING): "breached a guardrail, crashed, or condemned",
    (_IDLE, _FALLING): "what serves breached, crashed, or is condemned",
    (_FETCHING, _FALLING): "the same, and the fetch stops",
    (_STAGED, _FALLING): "the same",
    (_FALLING, _IDLE): "the gateway confirms what serves, says that it failed, or the deadline passed",
}


def moved(pipeline: PipelineRecord, state: State) -> PipelineRecord:
    """In another state. Asserts that the table has the change."""
    assert pipeline.state is state or (pipeline.state, state) in TRANSITIONS, (pipeline.state, state)
    return msgspec.structs.replace(pipeline, state=state, deadline=None)


def begin_fetch(pipeline: PipelineRecord, target: Target) -> PipelineRecord:
    return msgspec.structs.replace(moved(pipeline, State.FETCHING), candidate=target)


def give_up_candidate(pipeline: PipelineRecord) -> PipelineRecord:
    """Back to idle before anything served."""
    assert pipeline.state is not State.TRIAL
    return msgspec.structs.replace(moved(pipeline, State.IDLE), candidate=None)


def begin_trial(pipeline: PipelineRecord, at: int) -> PipelineRecord:
    """The candidate serves; `current` is its refuge."""
    assert pipeline.candidate is not None
    changed = msgspec.structs.replace(moved(pipeline, State.TRIAL), trial_began=at, unproven=False)
    return activated(changed, pipeline.candidate, at, "trial")


def commit(pipeline: PipelineRecord, *, proven: bool, keep_previous: bool) -> PipelineRecord:
    """The candidate becomes `current`; `previous` := old `current`, or stays when `keep_previous` (the old one is no good)."""
    assert pipeline.candidate is not None
    old = pipeline.previous if keep_previous else pipeline.current
    return msgspec.structs.replace(
        moved(pipeline, State.IDLE),
        current=pipeline.candidate,
        previous=old if old is None or old.key != pipeline.candidate.key else None,
        candidate=None,
        trial_began=None,
        attempts=None,
        single=pipeline.single and old is None,
        unproven=not proven,
    )


def drop_candidate(pipeline: PipelineRecord, at: int, cause: str) -> PipelineRecord:
    """End a trial: `current` serves again, and no gateway needs to confirm anything before what comes next."""
    assert pipeline.current is not None
    assert pipeline.state is State.TRIAL
    changed = msgspec.structs.replace(moved(pipeline, State.IDLE), candidate=None, trial_began=None)
    return activated(changed, pipeline.current, at, cause)


def fall_back(pipeline: PipelineRecord, to: Target, at: int, cause: str) -> PipelineRecord:
    """To a slot that is on the device: in a trial the candidate goes, later `current` goes and `previous` is left empty."""
    changed = msgspec.structs.replace(moved(pipeline, State.FALLING_BACK), candidate=None, trial_began=None)
    if pipeline.current is None or pipeline.current.key != to.key:
        assert pipeline.previous is not None
        assert pipeline.previous.key == to.key
        changed = msgspec.structs.replace(changed, current=to, previous=None, single=True, unproven=False)
    return activated(changed, to, at, cause)


def adopt(pipeline: PipelineRecord, at: int, *, keep_previous: bool) -> PipelineRecord:
    """The tested candidate replaces a condemned `current` at once: no trial, for there is nothing to go back to."""
    assert pipeline.candidate is not None
    target = pipeline.candidate
    changed = msgspec.structs.replace(
        moved(pipeline, State.FALLING_BACK),
        current=target,
        previous=pipeline.previous if keep_previous and pipeline.previous != target else None,
        candidate=None,
        attempts=None,
        unproven=True,
    )
    return activated(changed, target, at, "rollback")


def refill(pipeline: PipelineRecord, standby: Target) -> PipelineRecord:
    """A verified standby is `previous`."""
    return msgspec.structs.replace(
        moved(pipeline, State.IDLE), previous=standby, candidate=None, single=False, attempts=None
    )


def clear(pipeline: PipelineRecord) -> PipelineRecord:
    """Nothing serves any more. What was condemned here, and what once served, stays known."""
    return PipelineRecord(condemned_here=pipeline.condemned_here, activations=pipeline.activations)


def condemn(pipeline: PipelineRecord, entry: Condemnation) -> PipelineRecord:
    """Condemned here, once for each pair; past the limit the oldest goes."""
    others = tuple(one for one in pipeline.condemned_here if one.target.key != entry.target.key)
    return msgspec.structs.replace(pipeline, condemned_here=(*others, entry)[-CONDEMNED_HERE_MAX:])


def failed_once_more(pipeline: PipelineRecord, target: Target, not_before: int) -> PipelineRecord:
    """One more attempt that condemns nothing, and when the next may be."""
    return msgspec.structs.replace(
        pipeline, attempts=Attempts(target=target.key, count=failures(pipeline, target) + 1, not_before=not_before)
    )


def failures(pipeline: PipelineRecord, target: Target) -> int:
    found = pipeline.attempts
    return found.count if found is not None and found.target == target.key else 0


def activated(pipeline: PipelineRecord, target: Target, at: int, cause: str) -> PipelineRecord:
    entry = Activation(target=target, at=at, cause=cause)
    return msgspec.structs.replace(pipeline, activations=(*pipeline.activations, entry)[-ACTIVATIONS_MAX:])
