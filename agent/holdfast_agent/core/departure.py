"""Leaving what serves: the device's own fallback, the return that a document orders, and the one that somebody asks for on
the device itself. None needs a network.

- To a slot that is on the device and that nothing condemns, at once.
- Pipelines that require each other go back together, in one save.
- With nothing to turn to the device stays, says so once, and goes on serving: inference never stops by our doing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from holdfast_agent.core import backoff, deadlines, requirements, slots
from holdfast_agent.core.commands import StopFetch, Tell
from holdfast_agent.core.device import SECOND_US, Device, Leaving, Live
from holdfast_agent.core.events import Moment, RollbackAsked
from holdfast_agent.core.intent import DAMAGED, allowed, attempt_of, incident_of, usable
from holdfast_agent.core.record import Condemnation, State
from holdfast_gateway.control import RetryLoad
from holdfast_shared.assign import Decision, Target
from holdfast_shared.failure_codes import FailureCode, condemns

# The failure code of what somebody left by `holdfast-agent rollback`: a person's judgement, by which no server acts alone.
LOCAL_ROLLBACK: Final = FailureCode.LOCAL_ROLLBACK
# The cause of an activation for which nothing of the release's own is to blame: another pipeline went back.
TAKEN_ALONG: Final = "taken along"
# A worker that failed for good is started again so often: the machine may have had a bad minute.
RELOAD_US: Final = 120 * SECOND_US


def leave(device: Device, name: str, now: Moment, *, code: str, detail: str, began_us: int | None) -> Device:
    """What serves has failed here: condemn it, and fall back if there is a good slot. May be repeated."""
    pipeline = device.record.pipeline(name)
    bad = pipeline.serving
    assert bad is not None
    if condemns(code) and allowed(device, name, bad):
        device = _condemned(device, name, bad, now, code=code, detail=detail)
    to = next((slot for slot in _others(device, name, bad) if usable(device, name, slot)), None)
    if to is None:
        return stay(device, name, now, code=code, detail=f"nothing good to fall back to: {detail}")
    if not condemns(code):
        device = _tried(device, name, bad, now)
    leaving = Leaving(kind="fell_back", target=bad, code=code, detail=detail, began_monotonic_us=began_us)
    return _switched(device, name, to, now, "fallback", leaving)


def roll_back_here(device: Device, asked: RollbackAsked, now: Moment) -> Device:
    """Somebody on the device wants what serves left: condemned here, and the other slot at once. `no_rollback`: nothing."""
    name, bad = asked.pipeline, asked.target
    if no_rollback(device, name, bad):
        return device
    to = next(slot for slot in _others(device, name, bad) if usable(device, name, slot))
    device = _condemned(device, name, bad, now, code=LOCAL_ROLLBACK, detail=asked.detail)
    leaving = Leaving(
        kind="rolled_back",
        target=bad,
        code=LOCAL_ROLLBACK,
        detail=asked.detail,
        began_monotonic_us=now.monotonic_us,
    )
    return _switched(device, name, to, now, "rollback", leaving)


def no_rollback(device: Device, name: str, bad: Target) -> str:
    """Why the device cannot leave `bad` because somebody asks for it, in words; empty when it can."""
    serving = device.record.pipeline(name).serving
    if serving is None:
        return f"{name} serves nothing here"
    if serving.key != bad.key:
        return f"{name} serves {serving.release.version} by now, not {bad.release.version}"
    others = _others(device, name, bad)
    if any(usable(device, name, slot) for slot in others):
        return ""
    if not others:
        return f"there is no other release of {name} on this device"
    why = {True: "failed", False: "is condemned"}
    return ", ".join(f"{slot.release.version} {why[allowed(device, name, slot)]}" for slot in others)


def condemn_candidate(device: Device, name: str, now: Moment, *, code: str, detail: str) -> Device:
    """The candidate failed its self-test, or where it shadowed, and never served."""
    candidate = device.record.pipeline(name).candidate
    assert candidate is not None
    if device.record.pipeline(name).state is State.SELF_TESTING:
        device = device.telling("self_test_failed", now, pipeline=name, target=candidate, code=code, detail=detail)
    return without_work(_condemned(device, name, candidate, now, code=code, detail=detail), name)


def turn_back(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """A document condemns what serves: to the rule's release if a slot has it, else to the stopgap, else stay."""
    pipeline = device.record.pipeline(name)
    bad = pipeline.serving
    assert bad is not None
    held = {slot.key for slot in _others(device, name, bad)}
    wanted = (slot for slot in (decision.serve, decision.stopgap) if slot is not None and slot.key in held)
    to = next((slot for slot in wanted if usable(device, name, slot)), None)
    incident = incident_of(device, name, bad)
    if to is None:
        return stay(device, name, now, code=FailureCode.CONDEMNED, detail=f"{incident}: no slot to turn to")
    leaving = Leaving(
        kind="rolled_back", target=bad, code=FailureCode.CONDEMNED, detail=incident, began_monotonic_us=now.monotonic_us
    )
    return _switched(device, name, to, now, "rollback", leaving)


def adopt(device: Device, name: str, now: Moment) -> Device:
    """The candidate passed its self-test, and what serves is condemned with nothing to turn to: it takes over at once."""
    pipeline = device.record.pipeline(name)
    bad = pipeline.serving
    assert bad is not None
    changed = slots.adopt(pipeline, now.at, keep_previous=allowed(device, name, pipeline.previous))
    leaving = Leaving(
        kind="rolled_back",
        target=bad,
        code=FailureCode.CONDEMNED,
        detail=incident_of(device, name, bad),
        began_monotonic_us=now.monotonic_us,
    )
    return _departed(device.with_pipeline(name, changed), name, now, leaving)


def stay(device: Device, name: str, now: Moment, *, code: str, detail: str) -> Device:
    """Say once that the device stays with what is not good. A trial ends: it is neither proven nor to be left."""
    pipeline = device.record.pipeline(name)
    assert pipeline.serving is not None
    target = pipeline.serving
    if pipeline.state is State.TRIAL:
        keep = not allowed(device, name, pipeline.current)
        committed = slots.commit(pipeline, proven=False, keep_previous=keep)
        device = without_work(device.with_pipeline(name, committed), name)
    key, live = f"stay {code} {target.key}", device.live_of(name)
    if key in live.told:
        return device
    device = device.telling("stay", now, pipeline=name, target=target, code=code, detail=detail)
    return device.with_live(name, replace(live, told=live.told | {key}))


def warn(device: Device, name: str, now: Moment, *, code: str, detail: str, target: Target | None = None) -> Device:
    """Say once of what serves, or of `target`, that it breaches a guardrail which leads nowhere by itself."""
    target, live = target or device.record.pipeline(name).serving, device.live_of(name)
    key = f"guardrail {code} {target.key if target is not None else ''}"
    if target is None or key in live.told:
        return device
    device = device.telling("guardrail", now, pipeline=name, target=target, code=code, detail=detail)
    return device.with_live(name, replace(device.live_of(name), told=live.told | {key}))


def confirm(device: Device, name: str, now: Moment) -> Device:
    """While falling back: idle again once the gateway confirms what serves, says that it failed, or the deadline passes.

    A slot that failed will not be confirmed: only an idle pipeline mends it, so waiting would be an outage.
    """
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    idle = slots.moved(pipeline, State.IDLE)
    if live.confirmed == pipeline.serving:
        left = live.leaving
        if left is not None:
            device = device.telling(
                left.kind,
                now,
                pipeline=name,
                target=left.target,
                code=left.code,
                detail=left.detail,
                began_monotonic_us=left.began_monotonic_us,
                at_monotonic_us=live.confirmed_us,
            )
        return device.with_pipeline(name, idle).with_live(name, replace(live, due_us=None, leaving=None))
    overdue = device.gateway.connected and live.due_us is not None and now.monotonic_us >= live.due_us
    if overdue or device.gateway.failed(name, pipeline.serving):
        detail = "the gateway does not confirm the slot that the device fell back to"
        device = device.telling(
            "degraded", now, pipeline=name, target=pipeline.serving, code=FailureCode.UNCONFIRMED, detail=detail
        )
        return device.with_pipeline(name, idle).with_live(name, replace(live, due_us=None))
    return device


def reload_failed(device: Device, name: str, now: Moment) -> Device:
    """Have workers of the two slots that failed for good started again from time to time; damaged bytes are fetched first."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    found = [device.gateway.slot(name, slot) for slot in (pipeline.current, pipeline.previous)]
    failed = [one for one in found if one is not None and one.state == "failed" and one.code != DAMAGED]
    if not failed or not device.gateway.connected:
        return device if live.reload_us is None else device.with_live(name, replace(live, reload_us=None))
    if live.reload_us is None:
        return device.with_live(name, replace(live, reload_us=now.monotonic_us + RELOAD_US))
    if now.monotonic_us < live.reload_us:
        return device
    device = device.doing(*(Tell(RetryLoad(target=one.target.key)) for one in failed))
    return device.with_live(name, replace(live, reload_us=now.monotonic_us + RELOAD_US))


def without_work(device: Device, name: str) -> Device:
    """Without what the pipeline was fetching, testing or had shadow. A trial goes on, by the deadline that it has."""
    pipeline = device.record.pipeline(name)
    if pipeline.state in (State.FETCHING, State.STAGED, State.SELF_TESTING, State.SHADOWING):
        device = device.with_pipeline(name, slots.give_up_candidate(pipeline))
    return _without_fetch(device, name)


def _without_fetch(device: Device, name: str) -> Device:
    live = device.live_of(name)
    due_us = live.due_us if device.record.pipeline(name).state is State.TRIAL else None
    device = device.with_live(name, replace(live, goal=None, due_us=due_us, left_us=None, mended_by_us=None))
    if device.fetch is not None and device.fetch[0] == name:
        device = replace(device, fetch=None).doing(StopFetch())
    return replace(device, garbage=True)


def _condemned(device: Device, name: str, target: Target, now: Moment, *, code: str, detail: str) -> Device:
    entry = Condemnation(target=target, attempt=attempt_of(device, name, target), code=code, at=max(now.at, 0))
    device = device.with_pipeline(name, slots.condemn(device.record.pipeline(name), entry))
    return device.telling("condemned_here", now, pipeline=name, target=target, code=code, detail=detail)


def _tried(device: Device, name: str, target: Target, now: Moment) -> Device:
    """With one more attempt of what is left and not condemned: the first is tried again at once, the next ever later."""
    pipeline = device.record.pipeline(name)
    failures = slots.failures(pipeline, target)
    wait_us = backoff.repeated_us(failures) if failures else 0
    device = device.with_pipeline(name, slots.failed_once_more(pipeline, target, max(now.at, 0) + wait_us))
    return device.with_live(name, replace(device.live_of(name), retry_us=now.monotonic_us + wait_us))


def taking_along(device: Device, name: str, to: Target, now: Moment) -> Device:
    """With the other pipelines gone back that require what `name` is about to leave, or whom it requires as they were."""
    for other, slot in requirements.going_back(device, name, to).items():
        bad = device.record.pipeline(other).serving
        if other == name or bad is None:
            continue
        leaving = Leaving(
            kind="rolled_back",
            target=bad,
            code=FailureCode.REQUIREMENT_UNMET,
            detail=f"{name} goes back to {to.release.version}",
            began_monotonic_us=now.monotonic_us,
        )
        device = _moved(device, other, slot, now, TAKEN_ALONG, leaving)
    return device


def _switched(device: Device, name: str, to: Target, now: Moment, cause: str, leaving: Leaving) -> Device:
    return _moved(taking_along(device, name, to, now), name, to, now, cause, leaving)


def _moved(device: Device, name: str, to: Target, now: Moment, cause: str, leaving: Leaving) -> Device:
    device = _without_fetch(device, name)
    changed = slots.fall_back(device.record.pipeline(name), to, now.at, cause)
    return _departed(device.with_pipeline(name, changed), name, now, leaving)


def _departed(device: Device, name: str, now: Moment, leaving: Leaving) -> Device:
    before = device.live_of(name)
    live = Live(
        confirmed=before.confirmed,
        confirmed_us=now.monotonic_us,
        leaving=leaving,
        due_us=deadlines.fallen_back_by(now),
        retry_us=before.retry_us,
        repair_us=before.repair_us,
        staged=before.staged,
    )
    return replace(device.with_live(name, live), garbage=True)


def _others(device: Device, name: str, serving: Target) -> list[Target]:
    pipeline = device.record.pipeline(name)
    return [slot for slot in (pipeline.current, pipeline.previous) if slot is not None and slot.key != serving.key]
