"""The gateway as the core sees it: what it should route, and what follows from what it says.

`confirmed` is what serves by the gateway's own word: by the Routes it says are in force, or by the first good answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core import departure, slots
from holdfast_agent.core.commands import Tell
from holdfast_agent.core.device import Device, GatewayView
from holdfast_agent.core.events import Moment
from holdfast_agent.core.guardrails import drift_breach, drift_rail
from holdfast_agent.core.record import State
from holdfast_gateway.control import AcknowledgeWindows, Route, Routes, SlotStatus, Status, Switched, Windows
from holdfast_shared.assign import Target
from holdfast_shared.drift import UNWATCHED
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.wire.report import Window

# Routes that a gateway slow in loading may still confirm.
SAID_MAX: Final = 8
# Serials of one run of the agent: those of an earlier run that a gateway remembers are below all of ours.
SERIALS_A_RUN: Final = 1 << 24
# Window numbers are reserved in blocks, so that a window costs no write of the record.
WINDOWS_RESERVED: Final = 4096


def routes_of(device: Device) -> tuple[Route, ...]:
    """What should be for every pipeline that has anything to route."""
    found = []
    for name, pipeline in sorted(device.record.pipelines.items()):
        testing, shadow = _candidate_of(device, name)
        if pipeline.serving is not None or testing is not None:
            found.append(
                Route(
                    pipeline=name,
                    serving=pipeline.serving,
                    refuge=pipeline.refuge,
                    testing=testing,
                    shadow=shadow,
                    requests=pipeline.shared,
                )
            )
    return tuple(found)


def _candidate_of(device: Device, name: str) -> tuple[Target | None, Target | None]:
    """The candidate that does not serve: what is tested, and what shadows; a shadow is tested where it will shadow."""
    pipeline, goal = device.record.pipeline(name), device.live_of(name).goal
    tested = pipeline.state is State.SELF_TESTING
    shadows = goal is not None and goal.purpose == "shadow" if tested else pipeline.state is State.SHADOWING
    return pipeline.candidate if tested and not shadows else None, pipeline.candidate if shadows else None


def connected(device: Device) -> Device:
    """A gateway that may know nothing of us: `told` will say everything."""
    return _unconfirmed(replace(device, gateway=replace(_remembered(device.gateway), connected=True)))


def gone(device: Device) -> Device:
    return _unconfirmed(replace(device, gateway=_remembered(device.gateway)))


def _remembered(view: GatewayView) -> GatewayView:
    """What outlives a connection."""
    return GatewayView(serial=view.serial, runtime=view.runtime, isolation=view.isolation)


def told(device: Device) -> Device:
    """With the routes said to the gateway, if they are not what it was last told."""
    gateway, routes = device.gateway, routes_of(device)
    if not gateway.connected or (gateway.said and gateway.said[-1].routes == routes):
        return device
    base = device.record.boots * SERIALS_A_RUN
    message = Routes(serial=max(base, gateway.serial) + 1, routes=routes)
    gateway = replace(gateway, serial=message.serial, said=(*gateway.said, message)[-SAID_MAX:])
    return replace(device, gateway=gateway).doing(Tell(message))


def status(device: Device, said: Status, now: Moment) -> Device:
    """Every slot as it is now, and which routes are in force."""
    if said.gateway != device.record.gateway:
        record = msgspec.structs.replace(device.record, gateway=said.gateway, windows_from=device.record.windows_next)
        if device.record.gateway:  # this boot had another one, which ended
            pipelines = {name: slots.started_in_trial(one) for name, one in record.pipelines.items()}
            record = msgspec.structs.replace(record, pipelines=pipelines)
        device = replace(device, record=record, desk=replace(device.desk, reported={}))
    statuses = {(one.pipeline, one.target.key): one for one in said.slots}
    shadows = {(one.pipeline, one.target.key): one for one in said.shadows}
    device = _news(device, said.slots, now)
    for one in said.shadows:
        device = _lost(
            device, device.gateway.shadows.get((one.pipeline, one.target.key)), one, now, "while it shadowed: "
        )
    runtime = said.runtime or device.gateway.runtime
    isolation = said.isolation or device.gateway.isolation
    view = replace(device.gateway, heard=True, slots=statuses, shadows=shadows, runtime=runtime, isolation=isolation)
    device = replace(device, gateway=view)
    in_force = next((one for one in device.gateway.said if one.serial == said.serial), None)
    if in_force is None:
        return device
    serving = {route.pipeline: route.serving for route in in_force.routes}
    for name in device.names:
        wanted, live = device.record.pipeline(name).serving, device.live_of(name)
        if live.confirmed is None or live.confirmed != wanted:  # a first good answer may be ahead of the serial
            device = _confirmed(device, name, serving.get(name), now.monotonic_us)
    return device


def switched(device: Device, said: Switched) -> Device:
    """A slot gave its first good answer since it began to serve."""
    if said.target != device.record.pipeline(said.pipeline).serving or not device.gateway.said:
        return device
    if all(route.serving != said.target for route in device.gateway.said[-1].routes if route.pipeline == said.pipeline):
        return device
    return _confirmed(device, said.pipeline, said.target, said.at_monotonic_us)


def windows(device: Device, said: Windows, now: Moment) -> Device:
    """Closed windows, each to be reported once. What is spooled already is acknowledged again."""
    if not device.gateway.heard:
        return device  # whose numbers these are is not known yet; they come again
    first = device.record.windows_from
    spooled = {number for numbers in device.desk.reported.values() for number in numbers}
    fresh = {first + one.window: one for one in said.windows if first + one.window not in spooled}
    again = tuple(one.window for one in said.windows if first + one.window in spooled)
    if again:
        device = device.doing(Tell(AcknowledgeWindows(windows=again)))
    known = {**device.desk.windows}
    for number, window in fresh.items():
        if number not in known:
            known[number] = msgspec.structs.replace(window, window=number)
            device = _watched(_counted(device, window), window, now)
    still = {number - first for number in spooled} & {one.window for one in said.windows}
    reported = {
        report: frozenset(number for number in numbers if number - first in still)
        for report, numbers in device.desk.reported.items()
    }
    reported = {report: numbers for report, numbers in reported.items() if numbers}
    device = replace(device, desk=replace(device.desk, windows=known, reported=reported))
    return _reserved(device, known)


def _counted(device: Device, window: Window) -> Device:
    """With the requests of what serves counted towards its proof."""
    pipeline, live = device.record.pipeline(window.pipeline), device.live_of(window.pipeline)
    serving = pipeline.serving
    since = pipeline.trial_began or 0
    if serving is None or (serving.release.digest, serving.environment) != (window.release.digest, window.environment):
        return device
    if window.closed_at < since:
        return device
    return device.with_live(window.pipeline, replace(live, counted=live.counted + window.requests))


def _watched(device: Device, window: Window, now: Moment) -> Device:
    """With the bins of what serves held against its reference; two windows that drift are told once."""
    name = window.pipeline
    serving, live = device.record.pipeline(name).serving, device.live_of(name)
    release = device.release_of(serving) if serving is not None else None
    rail = drift_rail(release) if release is not None else None
    if serving is None or rail is None or not window.drift:
        return device
    if (serving.release.digest, serving.environment) != (window.release.digest, window.environment):
        return device
    before = live.watch if live.watched == serving.key else UNWATCHED
    watch = before.seen(window.drift, rail.threshold, rail.requests_min)
    device = device.with_live(name, replace(live, watch=watch, watched=serving.key))
    breach = drift_breach(rail, watch)
    if breach is None:
        return device
    return departure.warn(device, name, now, code=breach.code, detail=breach.detail)


def _reserved(device: Device, numbers: Iterable[int]) -> Device:
    highest = max(numbers, default=-1)
    if highest < device.record.windows_next:
        return device
    record = msgspec.structs.replace(device.record, windows_next=highest + WINDOWS_RESERVED)
    return replace(device, record=record)


def _news(device: Device, slots: Iterable[SlotStatus], now: Moment) -> Device:
    """What is worth an event: a worker that was lost, a slot that no longer verifies or loads."""
    known = device.gateway.slots
    for one in slots:
        old = known.get((one.pipeline, one.target.key))
        device = _lost(device, old, one, now)
        pipeline = device.record.pipeline(one.pipeline)
        named = one.target in (pipeline.current, pipeline.previous)
        if named and one.state == "failed" and (old is None or old.state != "failed"):
            device = device.telling(
                "degraded", now, pipeline=one.pipeline, target=one.target, code=one.code, detail=one.detail
            )
    return device


def _lost(device: Device, old: SlotStatus | None, one: SlotStatus, now: Moment, where: str = "") -> Device:
    """With the workers told that it has lost since it was last told of."""
    if old is None or one.losses <= old.losses:
        return device
    detail = f"{where}{one.losses - old.losses} worker(s) lost, {one.losses} since it was loaded: {one.detail}"
    code = one.code or FailureCode.CRASH
    return device.telling("worker_lost", now, pipeline=one.pipeline, target=one.target, code=code, detail=detail)


def _confirmed(device: Device, name: str, target: Target | None, at_us: int) -> Device:
    live = device.live_of(name)
    if live.confirmed == target:
        return device
    return device.with_live(name, replace(live, confirmed=target, confirmed_us=at_us))


def _unconfirmed(device: Device) -> Device:
    live = {name: replace(one, confirmed=None, confirmed_us=None) for name, one in device.live.items()}
    return replace(device, live=live)
