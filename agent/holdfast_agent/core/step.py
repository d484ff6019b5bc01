"""The whole device: `step(device, event, now) → Step(device, commands)`, and `resume`, which is the whole recovery story.

The record is saved before anything that follows from it: `Save` is the first command of its step, and every command may be
repeated. What should be fetched, routed and reported is derived from the value at the end of each step, so that nothing hangs
on whether an earlier command was ever carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from holdfast_agent.core import (
    acceptance,
    backoff,
    dataplane,
    deadlines,
    departure,
    downloads,
    intent,
    life,
    reporting,
    requirements,
    shadow,
    slots,
    verification,
    windows,
)
from holdfast_agent.core.commands import Command, Save, WakeAt
from holdfast_agent.core.device import SECOND_US, Desk, Device, Leaving, Live, Own
from holdfast_agent.core.events import (
    DocumentReceived,
    Event,
    FetchEnded,
    GatewayConnected,
    GatewayGone,
    GatewaySaid,
    Moment,
    RollbackAsked,
    SlotsVerified,
    SpoolFailed,
    Tick,
)
from holdfast_agent.core.record import Attempts, PipelineRecord, Record, State
from holdfast_gateway.control import FromGateway, Status, Switched, Tallied, Windows
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.wire.release import Release

# What else than a document's condemnation a return may have been for.
_KEPT: Final = (departure.LOCAL_ROLLBACK, FailureCode.REQUIREMENT_UNMET)
# Changes of one pipeline in one step. The machine has seven states and no loop without waiting: more is a bug of ours.
CHANGES_MAX: Final = 24
# The first health after a start waits for the gateway's word on what serves, and not for long.
FIRST_HEALTH_US: Final = 2 * SECOND_US


class Step(NamedTuple):
    device: Device
    commands: tuple[Command, ...]


def step(device: Device, event: Event, now: Moment) -> Step:
    """What follows from an event. `device` itself does not change; if `Save` fails, go on with it as it was."""
    return _settled(device.record, _after(device, event, now), now)


def resume(own: Own, record: Record, releases: Mapping[str, Release], now: Moment) -> Step:
    """The device after a start of the agent, first or hundredth, from its last saved record alone.

    `releases` are the manifests of the slots, as far as they can be read.
    """
    started = msgspec.structs.replace(_booted(own, record), boots=record.boots + 1)
    device = Device(
        own=own,
        record=started,
        documents=acceptance.parsed_documents(own, record),
        releases=dict(releases),
        desk=Desk(number=record.number, health_due_us=now.monotonic_us + min(own.health_us, FIRST_HEALTH_US)),
        garbage=True,
    )
    device = verification.first(device, now)
    for name in record.pipelines:
        device = _resumed(device, name, now)
    device = device.telling("restarted", now, detail=f"start {started.boots}", urgent=False)
    return _settled(record, device, now)


def first_record(incarnation: str) -> Record:
    """Of a device that has never run. `incarnation` is 16 random hex digits."""
    return Record(incarnation=incarnation)


def _after(device: Device, event: Event, now: Moment) -> Device:
    match event:
        case DocumentReceived():
            return acceptance.receive(device, event, now)
        case GatewayConnected():
            return _counted_anew(dataplane.connected(device), now)
        case GatewayGone():
            return dataplane.gone(device)
        case GatewaySaid(message):
            return _heard(device, message, now)
        case FetchEnded():
            return life.fetched(device, event, now)
        case RollbackAsked():
            return departure.roll_back_here(device, event, now)
        case SlotsVerified():
            return verification.verified(device, event, now)
        case SpoolFailed(number):
            return reporting.not_spooled(device, number)
        case Tick():
            return device


def _heard(device: Device, message: FromGateway, now: Moment) -> Device:
    if not device.gateway.connected:  # its last words, after we saw it go
        return device
    match message:
        case Status():
            return dataplane.status(device, message, now)
        case Tallied():
            return life.tallied(device, message, now)
        case Windows():
            return reporting.windows_came(dataplane.windows(device, message, now))
        case Switched():
            return dataplane.switched(device, message)


def _settled(before: Record, device: Device, now: Moment) -> Step:
    """Every pipeline's machine run until it waits, then everything that should be said and done about it."""
    for name in sorted(device.names, key=lambda name: not _urgent(device, name)):
        for _ in range(CHANGES_MAX):
            changed = life.advance(device, name, now)
            if changed is device:
                break
            device = changed
        else:
            raise AssertionError(f"{name} changes for ever: {device.record.pipeline(name)}")
    for name in device.names:
        device = intent.with_barred(device, name)
    device = _unmet_told(device, now)
    device = verification.settled(downloads.collected(dataplane.told(device)), now)
    device = reporting.reported(device, now)
    commands = device.outgoing
    if device.record != before:
        commands = (Save(device.record), *commands)
    return Step(replace(device, outgoing=()), (*commands, WakeAt(_wake_us(device, now))))


def _unmet_told(device: Device, now: Moment) -> Device:
    """With each requirement that is not met said once: nothing waits for it, and nothing stops."""
    for one in requirements.unmet(device):
        serving, live = device.record.pipeline(one.pipeline).serving, device.live_of(one.pipeline)
        key = f"{FailureCode.REQUIREMENT_UNMET} {one}"
        if key not in live.told:
            code = FailureCode.REQUIREMENT_UNMET
            device = device.telling("stay", now, pipeline=one.pipeline, target=serving, code=code, detail=str(one))
            device = device.with_live(one.pipeline, replace(live, told=live.told | {key}))
    return device


def _urgent(device: Device, name: str) -> bool:
    """Whether it goes first when there is one download to be had: what serves is condemned."""
    return intent.decision_of(device, name).urgent


def _resumed(device: Device, name: str, now: Moment) -> Device:
    """Work under way begins anew: it is decided again, and a fetch goes on where its bytes end."""
    pipeline = device.record.pipeline(name)
    live = Live(
        retry_us=_again_us(pipeline.attempts, now) if pipeline.attempts is not None else None,
        repair_us={one.target: _again_us(one, now) for one in pipeline.repairs},
        perhaps_here=intent.perhaps_on_disk(device, name),
    )
    if pipeline.state is State.SHADOWING:
        live = shadow.resumed(live, pipeline)
    elif pipeline.state in (State.FETCHING, State.STAGED, State.SELF_TESTING):
        device = device.with_pipeline(name, slots.give_up_candidate(pipeline))
    elif pipeline.state is State.FALLING_BACK:
        live = replace(live, leaving=_left(pipeline))
    return _counted_from_now(device.with_live(name, live), name, now)


def _booted(own: Own, record: Record) -> Record:
    """The record at a start: another boot than at the last one is a start of the machine, and of its gateway."""
    if own.boot == record.boot:
        return record
    if not record.boot:  # of an agent that did not note it: nobody knows whether the machine started since
        return msgspec.structs.replace(record, boot=own.boot)
    pipelines = {name: slots.started_in_trial(one) for name, one in record.pipelines.items()}
    return msgspec.structs.replace(record, boot=own.boot, gateway="", pipelines=pipelines)


def _again_us(attempts: Attempts, now: Moment) -> int:
    """When it may be tried again. A wall clock that was set meanwhile cannot make it longer than ever."""
    return now.monotonic_us + min(max(attempts.not_before - now.at, 0), backoff.CAP_US)


def _left(pipeline: PipelineRecord) -> Leaving | None:
    """What was being left when the agent ended, from the activations: when it began is no longer known."""
    if len(pipeline.activations) < 2:
        return None
    newest, before = pipeline.activations[-1], pipeline.activations[-2]
    codes = {entry.target.key: entry.code for entry in pipeline.condemned_here}
    code, rolled_back = codes.get(before.target.key, ""), newest.cause == "rollback"
    if newest.cause == departure.TAKEN_ALONG:
        code, rolled_back = FailureCode.REQUIREMENT_UNMET, True
    return Leaving(
        kind="rolled_back" if rolled_back else "fell_back",
        target=before.target,
        code=code if code in _KEPT or not rolled_back else FailureCode.CONDEMNED,
        detail="before the agent was restarted",
        began_monotonic_us=None,
    )


def _counted_anew(device: Device, now: Moment) -> Device:
    """What waits for the gateway's word has its whole time again: while there was none, nobody could answer."""
    for name in device.live:
        device = _counted_from_now(device, name, now)
    return device


def _counted_from_now(device: Device, name: str, now: Moment) -> Device:
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    release = device.release_of(pipeline.candidate)
    if pipeline.state is State.SELF_TESTING:
        return device.with_live(name, replace(live, due_us=shadow.tested_by(live.goal, release, now)))
    if pipeline.state is State.TRIAL and live.activated != pipeline.candidate:
        return device.with_live(name, replace(live, due_us=deadlines.trial_confirmed_by(release, now)))
    if pipeline.state is State.FALLING_BACK:
        return device.with_live(name, replace(live, due_us=deadlines.fallen_back_by(now)))
    return device


def _wake_us(device: Device, now: Moment) -> int:
    """The next moment at which something is due by itself. What is past and still waits, waits for another event."""
    desk = device.desk
    times = [desk.health_due_us if desk.closing_until_us is None else desk.closing_until_us]
    reading = device.verification
    times.append(reading.due_us if reading.until_us is None else reading.until_us)
    for live in device.live.values():
        known = (
            live.due_us,
            live.mended_by_us,
            live.retry_us,
            live.held_us,
            live.reload_us,
            live.begins_us,
            *live.repair_us.values(),
        )
        times += [one for one in known if one is not None]
    if any(intent.windows_matter(device, name) for name in device.names):
        times.append(now.monotonic_us + windows.next_minute_us(now.at))
    return min((one for one in times if one > now.monotonic_us), default=now.monotonic_us + device.own.health_us)
