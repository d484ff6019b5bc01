"""The life of a release on a device: one step of one pipeline's machine at a time, until nothing more follows.

idle → fetching → staged → self_testing → trial → idle, or → shadowing → idle, and from any of them → falling_back → idle. The
table of states is in `slots`, what leads back in `departure`, a candidate that serves in `trial`, one that only shadows in
`shadow`; here is what leads to one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from holdfast_agent.core import (
    backoff,
    deadlines,
    departure,
    downloads,
    requirements,
    shadow,
    slots,
    spread,
    trial,
    verification,
)
from holdfast_agent.core.commands import Tell
from holdfast_agent.core.device import SECOND_US, Device, Goal, Live
from holdfast_agent.core.events import FetchEnded, Moment
from holdfast_agent.core.guardrails import breach_of, told_of
from holdfast_agent.core.intent import (
    allowed,
    closed_to_download,
    closed_to_switch,
    counts,
    decision_of,
    goals_of,
    obstacle,
)
from holdfast_agent.core.record import State
from holdfast_gateway.control import RetryLoad, Tallied
from holdfast_shared.assign import Decision, Target
from holdfast_shared.failure_codes import FailureCode, condemns

# The power may fail in a trial, even twice. A release that takes the machine down with it costs so many starts, once.
STARTS_IN_TRIAL_MAX: Final = 3


def advance(device: Device, name: str, now: Moment) -> Device:
    """The next change of the pipeline, or the very same device when there is none."""
    pipeline, decision = device.record.pipeline(name), decision_of(device, name)
    if decision.remove:
        return _remove(device, name, now)
    if decision.urgent:
        turned = departure.turn_back(device, name, decision, now)
        if turned is not device:
            return turned
    else:
        left = _answer_failure(device, name, now)
        if left is not device:
            return left
    match pipeline.state:
        case State.IDLE:
            return _begin(departure.reload_failed(device, name, now), name, decision, now)
        case State.FETCHING | State.STAGED | State.SELF_TESTING:
            return _work(device, name, decision, now)
        case State.SHADOWING:  # for weeks, maybe: the two slots are looked after as in idle
            return _work(departure.reload_failed(device, name, now), name, decision, now)
        case State.TRIAL:
            soaked = trial.soaked(device, name, decision, now)
            return soaked if soaked is not device else downloads.mended_beside_trial(device, name, decision, now)
        case State.FALLING_BACK:
            return departure.confirm(device, name, now)
        case _ as impossible:
            assert_never(impossible)


def fetched(device: Device, ended: FetchEnded, now: Moment) -> Device:
    """After a fetch. One that is not the fetch under way is late, and changes nothing."""
    name, live = ended.pipeline, device.live_of(ended.pipeline)
    goal = live.goal
    if device.fetch != (name, ended.target) or goal is None or goal.target != ended.target:
        return device
    device = replace(device, fetch=None)
    if ended.code == FailureCode.OVER_BUDGET:
        return _held(device, name, ended, now)
    if ended.code == FailureCode.OUTSIDE_WINDOW:
        return _not_here(device, name, ended.target)
    if not ended.ok or ended.release is None:
        code = ended.code or FailureCode.FETCH_DAMAGED
        wait_us = max(
            backoff.delay_us(downloads.failures(device, name, goal), ended.draw),
            min(int(ended.retry_after_s * SECOND_US), backoff.CAP_US),
        )
        device = device.telling("fetch_failed", now, pipeline=name, target=goal.target, code=code, detail=ended.detail)
        return downloads.tried_later(device, name, now, wait_us)
    device = replace(device, releases={**device.releases, goal.target.release.digest: ended.release})
    for digest in sorted(goal.target.digests):
        device = verification.mended(device, digest, now)
    return _arrived(device, name, goal, now)


def _held(device: Device, name: str, ended: FetchEnded, now: Moment) -> Device:
    """Nothing may come for a while, which is nobody's failure: idle, and said in `waiting_for`."""
    wait_us = min(int(ended.retry_after_s * SECOND_US), backoff.HELD_US)
    if decision_of(device, name).urgent:
        wait_us = min(wait_us, backoff.URGENT_CAP_US)
    device = departure.without_work(device, name)
    held_us = now.monotonic_us + max(wait_us, backoff.LEAST_US)
    return device.with_live(name, replace(device.live_of(name), held_us=held_us, held_for=ended.detail))


def _not_here(device: Device, name: str, target: Target) -> Device:
    """Something of it is not on this disk: it waits for its download window, which is no failure."""
    device = departure.without_work(device, name)
    live = device.live_of(name)
    return device.with_live(name, replace(live, perhaps_here=live.perhaps_here - {target.key}))


def tallied(device: Device, said: Tallied, now: Moment) -> Device:
    """After the gateway's counts of a slot: a breach by what serves leads back at once."""
    pipeline, live = device.record.pipeline(said.pipeline), device.live_of(said.pipeline)
    if pipeline.requests is not None and said.target == pipeline.current:
        return trial.judged_beside(device, said, now)
    if pipeline.serving is None or said.target != pipeline.serving:
        return device
    live = replace(live, tallied=said.window.requests, first_bad_us=said.first_bad_monotonic_us)
    device = device.with_live(said.pipeline, live)
    release = device.release_of(pipeline.serving)
    if release is not None:
        for one in told_of(release, said.window):
            device = departure.warn(device, said.pipeline, now, code=one.code, detail=one.detail)
    breach = breach_of(release, said.window) if release is not None else None
    if breach is None or not allowed(device, said.pipeline, pipeline.serving):  # condemned before: it is being left
        return device
    began = said.first_bad_monotonic_us if said.first_bad_monotonic_us is not None else now.monotonic_us
    return departure.leave(device, said.pipeline, now, code=breach.code, detail=breach.detail, began_us=began)


def _answer_failure(device: Device, name: str, now: Moment) -> Device:
    """What serves failed for good; or it was condemned here with nothing to turn to, and now there may be something."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    status = device.gateway.slot(name, pipeline.serving)
    began = live.first_bad_us if live.first_bad_us is not None else now.monotonic_us
    if status is not None and status.state == "failed":
        code = status.code or FailureCode.LOAD_FAILED
        return departure.leave(device, name, now, code=code, detail=status.detail, began_us=began)
    if pipeline.state is State.TRIAL and pipeline.trial_starts >= STARTS_IN_TRIAL_MAX:
        detail = f"the device, or its gateway, started {pipeline.trial_starts} times before the trial was over"
        return departure.leave(device, name, now, code=FailureCode.BOOT_LOOP, detail=detail, began_us=None)
    if pipeline.serving is None or allowed(device, name, pipeline.serving):
        return device
    known = {entry.target.key: entry.code for entry in pipeline.condemned_here}
    code = known[pipeline.serving.key]
    return departure.leave(device, name, now, code=code, detail="condemned here before", began_us=None)


def _remove(device: Device, name: str, now: Moment) -> Device:
    pipeline = device.record.pipeline(name)
    if slots.clear(pipeline) == pipeline:
        return device
    device = departure.without_work(device, name)
    device = device.with_pipeline(name, slots.clear(pipeline)).with_live(name, Live())
    return device.telling("removed", now, pipeline=name, target=pipeline.serving)


def _begin(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """Idle: fetch what is missing, unless something stands in the way."""
    device = spread.begun(shadow.forgotten(device, name, decision), name, decision, now)
    goal = downloads.next_goal(device, name, decision, now)
    if goal is None:
        return trial.counted_enough(_waiting(device, name, ""), name)
    why = downloads.hindrance(device, name, decision, goal, now)
    first = device.fetch[0] if device.fetch is not None else None
    if not why and first is not None and (not decision.urgent or decision_of(device, first).urgent):
        why = f"the download for {first} goes first"
    if why:
        return _waiting(device, name, why)
    if first is not None:  # what serves here is condemned: the other download goes on later, where its bytes end
        device = departure.without_work(device, first)
    return downloads.begun(device, name, decision, goal, now)


def _work(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """On the way to a trial, or shadowing: a changed decision supersedes it."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    goal = live.goal
    if goal is None or not _is_wanted(device, name, decision, goal, now):
        return departure.without_work(device, name)
    if pipeline.state is State.STAGED:
        return _begin_self_test(device, name, decision, goal, now)
    if pipeline.state in (State.SELF_TESTING, State.SHADOWING):
        return _self_test(device, name, decision, goal, now)
    if not live.from_disk and closed_to_download(device, decision, goal, now):  # what came stays, for the next window
        return departure.without_work(device, name)
    if live.due_us is not None and now.monotonic_us >= live.due_us:
        return downloads.given_up_as_too_slow(device, name, now)
    return device


def _is_wanted(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> bool:
    """Whether it is still first: of all that is missing, or, a repair, of what need not wait."""
    if goal.purpose == "repair":
        return goal == downloads.next_goal(device, name, decision, now)
    return goal == next(goals_of(device, name, decision), None)


def _arrived(device: Device, name: str, goal: Goal, now: Moment) -> Device:
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    match goal.purpose:
        case "serve" | "stage" | "shadow":
            device = device.with_pipeline(name, slots.moved(pipeline, State.STAGED))
            here = live.perhaps_here | {goal.target.key}
            due_us = now.monotonic_us + deadlines.STAGED_US
            device = device.with_live(name, replace(live, due_us=due_us, perhaps_here=here))
            return device.telling("staged", now, pipeline=name, target=goal.target, urgent=False)
        case "standby":
            device = device.with_pipeline(name, slots.refill(pipeline, goal.target))
            device = replace(device.with_live(name, replace(live, goal=None, due_us=None)), garbage=True)
            return device.telling("staged", now, pipeline=name, target=goal.target, detail="standby", urgent=False)
        case "repair":  # counts as an attempt: bytes that go bad again and again must not become a busy loop
            wait_us = backoff.repeated_us(downloads.failures(device, name, goal))
            device = downloads.tried_later(device, name, now, wait_us)
            if not device.gateway.failed(name, goal.target):  # it serves from memory, and goes on
                return device
            return _tell_to_reload(device, name, goal)
        case _ as impossible:
            assert_never(impossible)


def _begin_self_test(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> Device:
    why = obstacle(device, name, decision, goal, now) or closed_to_switch(device, decision, goal, now)
    why = why or _required(device, name, decision, goal)
    if why:
        return _held_up(device, name, decision, goal, now, why)
    if goal.purpose != "shadow" and device.gateway.failed(name, goal.target):
        device = _tell_to_reload(device, name, goal)
    device = device.with_pipeline(name, slots.moved(device.record.pipeline(name), State.SELF_TESTING))
    due_us = shadow.tested_by(goal, device.release_of(goal.target), now)
    return device.with_live(name, replace(device.live_of(name), due_us=due_us, left_us=None, waiting_for=""))


def _required(device: Device, name: str, decision: Decision, goal: Goal) -> str:
    """What it or another pipeline requires and would not have. It may be fetched, and waits where it is staged.

    What serves being condemned, it goes forward all the same: nothing is worse than what serves.
    """
    return "" if goal.purpose != "serve" or decision.urgent else requirements.in_the_way(device, name, goal.target)


def _held_up(device: Device, name: str, decision: Decision, goal: Goal, now: Moment, why: str) -> Device:
    """Staged, and kept from going forward: for so long, not counting the time in which its rule has it wait."""
    device = _waiting(device, name, why)
    live = device.live_of(name)
    if not counts(device, decision, goal, now):
        if live.due_us is None:
            return device
        return device.with_live(name, replace(live, due_us=None, left_us=max(live.due_us - now.monotonic_us, 0)))
    if live.due_us is None:
        left_us = deadlines.STAGED_US if live.left_us is None else live.left_us
        return device.with_live(name, replace(live, due_us=now.monotonic_us + left_us, left_us=None))
    if now.monotonic_us < live.due_us:
        return device
    return _given_up(device, name, goal, now, code=FailureCode.HELD_UP, detail=why)


def _tell_to_reload(device: Device, name: str, goal: Goal) -> Device:
    """Have the worker started anew, and forget how the last one ended."""
    known = {key: status for key, status in device.gateway.slots.items() if key != (name, goal.target.key)}
    device = replace(device, gateway=replace(device.gateway, slots=known))
    return device.doing(Tell(RetryLoad(target=goal.target.key)))


def _self_test(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> Device:
    status, live = device.gateway.asked_for(name, goal), device.live_of(name)
    if status is not None and status.state == "failed":
        code = status.code or FailureCode.SELF_TEST_FAILED
        if condemns(code) and not shadow.is_refuge(device, name, goal):
            return departure.condemn_candidate(device, name, now, code=code, detail=status.detail)
        return _given_up(device, name, goal, now, code=code, detail=status.detail)
    if goal.purpose == "shadow":
        device = _waiting(device, name, shadow.waits_for(status))
    if device.record.pipeline(name).state is State.SHADOWING:
        return shadow.goes_on(device, name, now)
    if status is not None and status.state == "ready":
        return _passed(device, name, decision, goal, now)
    if device.gateway.connected and live.due_us is not None and now.monotonic_us >= live.due_us:
        detail = status.detail if status is not None else ""
        code = status.code if status is not None and status.state == "stopped" else ""  # else how it was last lost
        return _given_up(device, name, goal, now, code=code or FailureCode.SELF_TEST_UNANSWERED, detail=detail)
    return device


def _passed(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> Device:
    live = device.live_of(name)
    if goal.purpose == "stage":
        device = device.with_live(name, replace(live, staged=live.staged | {goal.target.key}))
        return departure.without_work(device, name)
    if goal.purpose == "shadow":
        return shadow.begun(device, name, now)
    if decision.urgent:
        return departure.adopt(device, name, now)
    why = _required(device, name, decision, goal)  # the other pipeline may have gone back meanwhile
    if why and (live.due_us is None or now.monotonic_us < live.due_us):
        return _waiting(device, name, why)
    if why:
        return _given_up(device, name, goal, now, code=FailureCode.HELD_UP, detail=why)
    requests = trial.requests_of(device.record.pipeline(name), decision)
    device = device.with_pipeline(name, slots.begin_trial(device.record.pipeline(name), max(now.at, 0), requests))
    trying = Live(
        confirmed=live.confirmed,
        confirmed_us=live.confirmed_us,
        staged=live.staged,
        repair_us=live.repair_us,
        due_us=deadlines.trial_confirmed_by(device.release_of(goal.target), now),
    )
    return device.with_live(name, trying)


def _given_up(device: Device, name: str, goal: Goal, now: Moment, *, code: str, detail: str = "") -> Device:
    """It is here and comes to nothing, for no fault that condemns it: told, and tried again ever less often."""
    device = device.telling("fetch_failed", now, pipeline=name, target=goal.target, code=code, detail=detail)
    return downloads.tried_later(device, name, now, backoff.repeated_us(downloads.failures(device, name, goal)))


def _waiting(device: Device, name: str, why: str) -> Device:
    live = device.live_of(name)
    return device if live.waiting_for == why else device.with_live(name, replace(live, waiting_for=why))
