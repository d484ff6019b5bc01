"""What a pipeline downloads next, what keeps it from that, and when it is tried again.

- One download at a time; what replaces a condemned release goes first.
- A trial of a share may last for weeks, so what rotted meanwhile is mended beside it, and the trial goes on.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast_agent.core import backoff, deadlines, departure, slots
from holdfast_agent.core.commands import CollectGarbage, StartFetch, StopFetch
from holdfast_agent.core.device import Device, Goal
from holdfast_agent.core.events import Moment
from holdfast_agent.core.intent import closed_to_download, decision_of, goals_of, obstacle, wanted_digests
from holdfast_agent.core.record import State
from holdfast_shared.assign import Decision
from holdfast_shared.failure_codes import FailureCode


def next_goal(device: Device, name: str, decision: Decision, now: Moment) -> Goal | None:
    """What is missing first; while that must wait, a damaged slot, which is somebody's refuge, need not."""
    goals = list(goals_of(device, name, decision))
    if goals and hindrance(device, name, decision, goals[0], now):
        repairs = (one for one in goals if one.purpose == "repair")
        return next((one for one in repairs if not hindrance(device, name, decision, one, now)), goals[0])
    return goals[0] if goals else None


def hindrance(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> str:
    """What keeps it from being fetched now, in words, or nothing: an obstacle, the time of day, or that it failed a while ago."""
    live, before = device.live_of(name), failures(device, name, goal)
    again_us = live.repair_us.get(goal.target.key) if goal.purpose == "repair" else live.retry_us
    why = obstacle(device, name, decision, goal, now)
    if not why and goal.target.key not in live.perhaps_here:
        why = closed_to_download(device, decision, goal, now)
    if not why and before and again_us is not None and _is_waited_for(again_us, decision, now):
        why = f"{goal.target.release.version} failed {before} time(s); it is tried again later"
    if not why and live.held_us is not None and _is_waited_for(live.held_us, decision, now):
        why = live.held_for
    return why


def _is_waited_for(retry_us: int, decision: Decision, now: Moment) -> bool:
    """A wait that began when nothing was urgent, and may last a day, ends when what serves is condemned."""
    left_us = retry_us - now.monotonic_us
    return left_us > 0 and not (decision.urgent and left_us > backoff.URGENT_CAP_US)


def begun(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> Device:
    """The fetch for it starts; from idle, its target is the candidate."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    from_disk = bool(closed_to_download(device, decision, goal, now))
    live = replace(live, goal=goal, held_us=None, from_disk=from_disk)
    if pipeline.state is State.TRIAL:
        live = replace(live, mended_by_us=deadlines.fetched_by(now))
    else:
        device = device.with_pipeline(name, slots.begin_fetch(pipeline, goal.target))
        live = replace(live, due_us=deadlines.fetched_by(now), waiting_for="")
    device = device.with_live(name, live if goal.purpose == "repair" else replace(live, retry_us=None))
    device = replace(collected(device), fetch=(name, goal.target))
    return device.doing(StartFetch(pipeline=name, target=goal.target, urgent=decision.urgent, from_disk=from_disk))


def mended_beside_trial(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """On trial: the fetch of a slot's damaged bytes begun, ended when nobody needs it any more, or given up for now."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    goal = live.goal
    damaged = [one for one in goals_of(device, name, decision) if one.purpose == "repair"]
    if goal is not None and (goal not in damaged or pipeline.requests is None):
        return departure.without_work(device, name)  # of an ordinary trial it waits for the end, which is near
    if goal is not None:
        overdue = live.mended_by_us is not None and now.monotonic_us >= live.mended_by_us
        return given_up_as_too_slow(device, name, now) if overdue else device
    if pipeline.requests is None or device.fetch is not None:
        return device
    first = next((one for one in damaged if not hindrance(device, name, decision, one, now)), None)
    return device if first is None else begun(device, name, decision, first, now)


def given_up_as_too_slow(device: Device, name: str, now: Moment) -> Device:
    """The fetch under way is stopped at its deadline."""
    goal = device.live_of(name).goal
    assert goal is not None
    device = device.telling("fetch_failed", now, pipeline=name, target=goal.target, code=FailureCode.FETCH_TOO_SLOW)
    return tried_later(replace(device, fetch=None).doing(StopFetch()), name, now, backoff.BASE_US)


def tried_later(device: Device, name: str, now: Moment, wait_us: int) -> Device:
    """No work, with one more attempt that condemns nothing: idle, or on trial as before."""
    goal = device.live_of(name).goal
    assert goal is not None
    device = departure.without_work(device, name)
    if decision_of(device, name).urgent:
        wait_us = min(wait_us, backoff.URGENT_CAP_US)
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    not_before, again_us = max(now.at, 0) + wait_us, now.monotonic_us + wait_us
    if goal.purpose == "repair":
        changed = slots.repaired_once_more(pipeline, goal.target, not_before)
        waits = {one.target: live.repair_us.get(one.target, again_us) for one in changed.repairs}
        waits[goal.target.key] = again_us
        return device.with_pipeline(name, changed).with_live(name, replace(live, repair_us=waits))
    device = device.with_pipeline(name, slots.failed_once_more(pipeline, goal.target, not_before))
    return device.with_live(name, replace(live, retry_us=again_us))


def failures(device: Device, name: str, goal: Goal) -> int:
    """How often it was tried in vain, or, a repair, at all."""
    count = slots.repairs if goal.purpose == "repair" else slots.failures
    return count(device.record.pipeline(name), goal.target)


def collected(device: Device) -> Device:
    """With what no slot and no decision names deleted, if anything changed. Never while a fetch is under way.

    Nor before the gateway says that it serves what the record says: until then it may serve, and reload, what was before.
    """
    if not device.garbage or device.fetch is not None or not _in_force(device):
        return device
    keep = frozenset(digest for name in device.names for digest in wanted_digests(device, name))
    releases = {digest: release for digest, release in device.releases.items() if digest in keep}
    return replace(device, garbage=False, releases=releases).doing(CollectGarbage(keep))


def _in_force(device: Device) -> bool:
    serving = {name: device.record.pipeline(name).serving for name in device.names}
    return device.gateway.heard and all(
        device.live_of(name).confirmed == one or device.gateway.failed(name, one) for name, one in serving.items()
    )
