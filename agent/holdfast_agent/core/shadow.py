"""A candidate that only shadows: it is asked what `current` has answered, answers nobody, and ends in idle, never on trial.

It goes on over restarts of agent, gateway and machine for as long as its rule stands, and at the most for SHADOW_HOURS_MAX. The
hours are counted as they begin and saved, by the clock that does not jump: a wall clock that is set neither ends nor prolongs it.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from holdfast_agent.core import deadlines, departure, slots
from holdfast_agent.core.device import Device, Goal, Live
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord
from holdfast_gateway.control import SlotStatus
from holdfast_shared.assign import Decision
from holdfast_shared.wire.release import Release


def tested_by(goal: Goal | None, release: Release | None, now: Moment) -> int:
    """When the gateway must have said how the self-test went."""
    shadows = goal is not None and goal.purpose == "shadow"
    return (deadlines.shadow_tested_by if shadows else deadlines.self_tested_by)(release, now)


def begun(device: Device, name: str, now: Moment) -> Device:
    """Its self-test passed where it will shadow."""
    pipeline = device.record.pipeline(name)
    device = device.with_pipeline(name, slots.begin_shadowing(pipeline))
    device = device.with_live(name, replace(device.live_of(name), due_us=None, waiting_for=""))
    device = device.telling("staged", now, pipeline=name, target=pipeline.candidate, detail="it shadows what serves")
    return goes_on(device, name, now)


def goes_on(device: Device, name: str, now: Moment) -> Device:
    """With the hour counted that begins now; past the last one it ends."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    if live.due_us is not None and now.monotonic_us < live.due_us:
        return device
    assert pipeline.shadowed is not None
    if pipeline.shadowed.hours >= deadlines.SHADOW_HOURS_MAX:
        detail = f"it has shadowed for {pipeline.shadowed.hours} hours, and ends"
        device = device.telling("staged", now, pipeline=name, target=pipeline.candidate, detail=detail)
        return departure.without_work(device, name)
    device = device.with_pipeline(name, slots.shadow_another_hour(pipeline))
    return device.with_live(name, replace(live, due_us=now.monotonic_us + deadlines.HOUR_US))


def waits_for(status: SlotStatus | None) -> str:
    """Why its worker is not there, in words, where that is nobody's failure."""
    return status.detail if status is not None and status.state == "stopped" and status.code else ""


def is_refuge(device: Device, name: str, goal: Goal) -> bool:
    """Whether it only shadows and is `previous`, too: where it fails as a shadow, the refuge is not lost with it."""
    previous = device.record.pipeline(name).previous
    return goal.purpose == "shadow" and previous is not None and previous.key == goal.target.key


def resumed(live: Live, pipeline: PipelineRecord) -> Live:
    """After a start of the agent it goes on as it was; a new hour begins, as nobody knows how much of the last was left."""
    assert pipeline.candidate is not None
    return replace(live, goal=Goal("shadow", pipeline.candidate))


def forgotten(device: Device, name: str, decision: Decision) -> Device:
    """Without the hours of what no rule wants to shadow any more: another rule for it has all its time again."""
    pipeline = device.record.pipeline(name)
    wanted = decision.shadow.key if decision.shadow is not None else ""
    if pipeline.shadowed is None or pipeline.shadowed.target == wanted:
        return device
    return device.with_pipeline(name, msgspec.structs.replace(pipeline, shadowed=None))
