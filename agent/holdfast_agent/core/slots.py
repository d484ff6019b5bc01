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
    Shadowed,
    State,
)
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Requests

_IDLE, _FETCHING, _STAGED, _TESTING, _TRIAL, _SHADOWING, _FALLING = (
    State.IDLE,
    State.FETCHING,
    State.STAGED,
    State.SELF_TESTING,
    State.TRIAL,
    State.SHADOWING,
    State.FALLING_BACK,
)
# From, to, each way why: the whole machine. Any other change of state is a bug of ours; each way has a transcript.
TRANSITIONS: Final[dict[tuple[State, State], tuple[str, ...]]] = {
    (_IDLE, _FETCHING): ("a target that is not in its slot", "a slot's bytes are damaged"),
    (_FETCHING, _STAGED): ("downloaded and verified",),
    (_FETCHING, _IDLE): (
        "failed",
        "deadline",
        "superseded",
        "a standby is in its slot",
        "a slot is whole again",
        "the agent was restarted",
    ),
    (_FETCHING, _FALLING): ("what serves breached, crashed, or is condemned", "what serves is taken along"),
    (_STAGED, _TESTING): ("allowed to go forward",),
    (_STAGED, _IDLE): ("deadline", "superseded", "the agent was restarted"),
    (_STAGED, _FALLING): ("what serves breached, crashed, or is condemned", "what serves is taken along"),
    (_TESTING, _TRIAL): ("the self-test passed",),
    (_TESTING, _SHADOWING): ("the self-test passed, and it only shadows",),
    (_TESTING, _IDLE): (
        "failed, and condemned here",
        "failed for no fault of its own",
        "deadline",
        "only staged",
        "superseded",
        "the agent was restarted",
    ),
    (_TESTING, _FALLING): (
        "passed, and what serves is condemned: no trial",
        "what serves breached, crashed, or is condemned",
        "what serves is taken along",
    ),
    (_TRIAL, _IDLE): ("committed", "nothing to turn to: committed unproven", "superseded and dropped", "removed"),
    (_TRIAL, _FALLING): (
        "breached a guardrail",
        "crashed",
        "condemned",
        "left by hand",
        "taken along by a pipeline that went back",
        "the device started again and again",
        "deadline",
    ),
    (_IDLE, _FALLING): (
        "breached a guardrail",
        "crashed",
        "condemned",
        "left by hand",
        "taken along by a pipeline that went back",
    ),
    (_SHADOWING, _IDLE): (
        "failed, and condemned here",
        "failed for no fault of its own",
        "deadline",
        "superseded",
        "removed",
    ),
    (_SHADOWING, _FALLING): ("what serves breached, crashed, or is condemned", "what serves is taken along"),
    (_FALLING, _IDLE): ("the gateway confirms what serves", "what serves failed", "deadline", "removed"),
}


def moved(pipeline: PipelineRecord, state: State) -> PipelineRecord:
    """In another state. Asserts that the table has the change."""
    assert pipeline.state is state or (pipeline.state, state) in TRANSITIONS, (pipeline.state, state)
    return msgspec.structs.replace(pipeline, state=state, deadline=None, requests=None)


def begin_fetch(pipeline: PipelineRecord, target: Target) -> PipelineRecord:
    return msgspec.structs.replace(moved(pipeline, State.FETCHING), candidate=target)


def give_up_candidate(pipeline: PipelineRecord) -> PipelineRecord:
    """Back to idle before anything served."""
    assert pipeline.state is not State.TRIAL
    return msgspec.structs.replace(moved(pipeline, State.IDLE), candidate=None)


def begin_trial(pipeline: PipelineRecord, at: int, requests: Requests | None = None) -> PipelineRecord:
    """The candidate serves, or gets these of the requests; `current` is its refuge, or answers the others."""
    assert pipeline.candidate is not None
    changed = msgspec.structs.replace(moved(pipeline, State.TRIAL), trial_began=at, trial_starts=0, unproven=False)
    return activated(share(changed, requests, None), pipeline.candidate, at, "trial")


def share(pipeline: PipelineRecord, requests: Requests | None, deadline: int | None) -> PipelineRecord:
    """The candidate on trial gets other requests than before, and soaks until `deadline`. None: all of them."""
    assert pipeline.state is State.TRIAL
    assert requests is None or pipeline.current is not None, "somebody must answer the others"
    return msgspec.structs.replace(pipeline, requests=requests, deadline=deadline)


def begin_shadowing(pipeline: PipelineRecord) -> PipelineRecord:
    """The candidate is asked what `current` answered, and answers nobody."""
    assert pipeline.candidate is not None
    before = pipeline.shadowed
    if before is None or before.target != pipeline.candidate.key:
        before = Shadowed(target=pipeline.candidate.key, hours=0)
    return msgspec.structs.replace(moved(pipeline, State.SHADOWING), attempts=None, shadowed=before)


def shadow_another_hour(pipeline: PipelineRecord) -> PipelineRecord:
    assert pipeline.shadowed is not None
    more = msgspec.structs.replace(pipeline.shadowed, hours=pipeline.shadowed.hours + 1)
    return msgspec.structs.replace(pipeline, shadowed=more)


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
        first_wanted=None,
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
    gone = moved(pipeline, State.IDLE)
    return PipelineRecord(condemned_here=gone.condemned_here, activations=gone.activations)


def condemn(pipeline: PipelineRecord, entry: Condemnation) -> PipelineRecord:
    """Condemned here, once for each pair; past the limit the oldest goes."""
    others = tuple(one for one in pipeline.condemned_here if one.target.key != entry.target.key)
    return msgspec.structs.replace(pipeline, condemned_here=(*others, entry)[-CONDEMNED_HERE_MAX:])


def started_in_trial(pipeline: PipelineRecord) -> PipelineRecord:
    """One more start of the machine, or of its gateway, before the trial was over."""
    if pipeline.state is not State.TRIAL:
        return pipeline
    return msgspec.structs.replace(pipeline, trial_starts=pipeline.trial_starts + 1)


def failed_once_more(pipeline: PipelineRecord, target: Target, not_before: int) -> PipelineRecord:
    """One more attempt that condemns nothing, and when the next may be."""
    return msgspec.structs.replace(
        pipeline, attempts=Attempts(target=target.key, count=failures(pipeline, target) + 1, not_before=not_before)
    )


def failures(pipeline: PipelineRecord, target: Target) -> int:
    found = pipeline.attempts
    return found.count if found is not None and found.target == target.key else 0


def repaired_once_more(pipeline: PipelineRecord, slot: Target, not_before: int) -> PipelineRecord:
    """One more attempt to mend the slot, good or not, and when the next may be. Of slots that are left none is kept."""
    entry = Attempts(target=slot.key, count=repairs(pipeline, slot) + 1, not_before=not_before)
    held = {one.key for one in pipeline.held}
    others = (one for one in pipeline.repairs if one.target != slot.key and one.target in held)
    return msgspec.structs.replace(pipeline, repairs=(*others, entry))


def repairs(pipeline: PipelineRecord, slot: Target) -> int:
    return next((one.count for one in pipeline.repairs if one.target == slot.key), 0)


def read_whole(pipeline: PipelineRecord, slot: Target) -> PipelineRecord:
    """The slot's bytes were read long after, and are whole: what was wrong is over."""
    kept = tuple(one for one in pipeline.repairs if one.target != slot.key)
    return pipeline if kept == pipeline.repairs else msgspec.structs.replace(pipeline, repairs=kept)


def activated(pipeline: PipelineRecord, target: Target, at: int, cause: str) -> PipelineRecord:
    entry = Activation(target=target, at=at, cause=cause)
    return msgspec.structs.replace(pipeline, activations=(*pipeline.activations, entry)[-ACTIVATIONS_MAX:])
