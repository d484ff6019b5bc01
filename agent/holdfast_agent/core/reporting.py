"""What a device says of itself, and when: health at every interval, events at once, each report under a number of its own.

Every report carries the pipelines as they are and the orders that were accepted, so that the newest alone says how a device
stands. Windows leave with health; the gateway may forget them only when the report that carries them is on our disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core.commands import Spool, Tell
from holdfast_agent.core.device import SECOND_US, Device
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import Condemnation, PipelineRecord, State
from holdfast_gateway.control import CloseWindows
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Scope
from holdfast_shared.wire.report import (
    EVENTS_MAX,
    WINDOWS_MAX,
    AcceptedDocument,
    CondemnedHere,
    Event,
    PipelineReport,
    Report,
    ShadowCounts,
    SlotReport,
    Window,
)

# How long health waits for the windows that it asked the gateway to close.
CLOSE_GRACE_US: Final = SECOND_US // 2
# Numbers are reserved in blocks: the record is not written for every report, and no number is used twice.
NUMBERS_RESERVED: Final = 64
# Of the condemnations here, the newest that are reported: more would push a report over its size.
CONDEMNED_REPORTED_MAX: Final = 16
# A report holds 128 KiB; windows take this much of it at most, estimated from above.
WINDOWS_BYTES_MAX: Final = 48 * 1024
_WINDOW_BYTES: Final = 700
_BIN_BYTES: Final = 24
_COUNT_BYTES: Final = 12
_FEATURE_BYTES: Final = 320
# Wire events are of at most 2 KiB; ours are shorter, but their number is limited all the same.
EVENTS_AT_ONCE_MAX: Final = min(EVENTS_MAX, 24)


def reported(device: Device, now: Moment) -> Device:
    """With the reports that are due: events at once, health with windows when its time has come."""
    desk = device.desk
    if desk.closing_until_us is not None:
        if now.monotonic_us >= desk.closing_until_us or not device.gateway.connected:
            return _health(device, now)
    elif now.monotonic_us >= desk.health_due_us:
        if not device.gateway.heard:
            return _health(device, now)
        desk = replace(desk, closing_until_us=now.monotonic_us + CLOSE_GRACE_US)
        device = replace(device, desk=desk).doing(Tell(CloseWindows()))
    return _events(device, now) if desk.urgent else device


def windows_came(device: Device) -> Device:
    """The windows that health waits for are here: it waits no longer."""
    if device.desk.closing_until_us is None:
        return device
    return replace(device, desk=replace(device.desk, closing_until_us=0))


def not_spooled(device: Device, number: int) -> Device:
    """The report is lost: its windows are still with the gateway, and are to be reported when they come again."""
    kept = {report: numbers for report, numbers in device.desk.reported.items() if report != number}
    return replace(device, desk=replace(device.desk, reported=kept))


def _health(device: Device, now: Moment) -> Device:
    """One report for each load of windows; the first carries the events that wait, at least one goes out."""
    pending = sorted(device.desk.windows.items())
    due = max(device.desk.health_due_us + device.own.health_us, now.monotonic_us + device.own.health_us // 2)
    desk = replace(device.desk, windows={}, closing_until_us=None, health_due_us=due)
    device = replace(device, desk=desk)
    for load in _loads(pending) or [[]]:
        events = device.desk.events[:EVENTS_AT_ONCE_MAX]
        device = _spooled(device, now, "health", events=events, windows=load)
    return _events(device, now) if device.desk.events else device


def _events(device: Device, now: Moment) -> Device:
    while device.desk.events:
        device = _spooled(device, now, "event", events=device.desk.events[:EVENTS_AT_ONCE_MAX], windows=())
    return device


def _spooled(
    device: Device, now: Moment, kind: str, *, events: Sequence[Event], windows: Sequence[tuple[int, Window]]
) -> Device:
    number, record = device.desk.number, device.record
    if number >= record.number:
        record = msgspec.structs.replace(record, number=number + NUMBERS_RESERVED)
    left = device.desk.events[len(events) :]
    spooled = {**device.desk.reported}
    if windows:
        spooled[number] = frozenset(window for window, _ in windows)
    desk = replace(device.desk, number=number + 1, events=left, urgent=bool(left), reported=spooled)
    device = replace(device, record=record, desk=desk)
    report = Report(
        fleet=device.own.membership.fleet,
        device=device.own.membership.device,
        incarnation=record.incarnation,
        number=number,
        kind="health" if kind == "health" else "event",
        sent_at=max(now.at, 0),
        sent_monotonic_us=now.monotonic_us,
        boot=device.own.boot,
        membership_counter=device.own.membership.counter,
        agent_version=device.own.agent_version,
        fingerprint=dict(device.gateway.runtime),
        isolation=device.gateway.isolation,
        accepted=tuple(_accepted(device)),
        pipelines=tuple(pipeline_report(device, name) for name in device.names if _is_told_of(device, name)),
        windows=tuple(window for _, window in windows),
        events=tuple(events),
        machine=device.own.machine,
    )
    first = record.windows_from  # windows of an earlier gateway process need no answer: it is gone
    return device.doing(Spool(report=report, windows=tuple(window - first for window, _ in windows if window >= first)))


def pipeline_report(device: Device, name: str) -> PipelineReport:
    """One pipeline as it is; `serving` by the gateway's word, the slots by the record's."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    doubtful = {*device.record.damaged, *device.verification.unreadable}
    rotten = any(bool(slot.digests & doubtful) for slot in pipeline.held)
    return PipelineReport(
        pipeline=name,
        state=pipeline.state.value,
        serving=_slot(device, name, pipeline, live.confirmed),
        current=_slot(device, name, pipeline, pipeline.current),
        previous=_slot(device, name, pipeline, pipeline.previous),
        candidate=_candidate(device, name, pipeline),
        condemned_here=tuple(_condemned(one) for one in pipeline.condemned_here[-CONDEMNED_REPORTED_MAX:]),
        single=pipeline.single,
        degraded=rotten or any(device.gateway.failed(name, slot) for slot in pipeline.held),
        requests=pipeline.requests,
        waiting_for=live.waiting_for if pipeline.state is not State.FETCHING else "",
    )


def _is_told_of(device: Device, name: str) -> bool:
    """What it has anything of, and what it waits for before its first install."""
    return name in device.record.pipelines or bool(device.live_of(name).waiting_for)


def in_one_line(device: Device) -> str:
    """What serves, for a person who has one line."""
    said = []
    for name, pipeline in sorted(device.record.pipelines.items()):
        version = pipeline.serving.release.version if pipeline.serving is not None else "nothing"
        state = f" ({pipeline.state})" if pipeline.state is not State.IDLE else ""
        if pipeline.state is State.SHADOWING and pipeline.candidate is not None:
            state = f" (shadowed by {pipeline.candidate.release.version})"
        elif pipeline.requests is not None:
            state = f" ({pipeline.state} of {pipeline.requests.in_words})"
        said.append(f"{name} {version}{state}")
    return ", ".join(said) or "nothing assigned yet"


def _slot(device: Device, name: str, pipeline: PipelineRecord, target: Target | None) -> SlotReport | None:
    if target is None:
        return None
    status = device.gateway.slot(name, target)
    return SlotReport(
        release=target.release,
        environment=target.environment,
        ready=status is not None and status.state == "ready",
        unproven=pipeline.unproven and target == pipeline.current,
    )


def _candidate(device: Device, name: str, pipeline: PipelineRecord) -> SlotReport | None:
    """What shadows has a worker of its own."""
    found = _slot(device, name, pipeline, pipeline.candidate)
    if found is None or pipeline.candidate is None or pipeline.state is not State.SHADOWING:
        return found
    status = device.gateway.shadows.get((name, pipeline.candidate.key))
    return msgspec.structs.replace(found, ready=status is not None and status.state == "ready")


def _condemned(entry: Condemnation) -> CondemnedHere:
    return CondemnedHere(
        release=entry.target.release,
        environment=entry.target.environment,
        attempt=entry.attempt,
        code=entry.code,
        at=entry.at,
    )


def _accepted(device: Device) -> Iterator[AcceptedDocument]:
    for one in device.record.documents:
        kind, _, name = one.scope.partition("/")
        scope = Scope(region=name) if kind == "region" else Scope(device=name)
        yield AcceptedDocument(scope=scope, pipeline=one.pipeline, epoch=one.epoch, seq=one.seq)


def _window_bytes(window: Window) -> int:
    """What it takes in a report, from above."""
    scores = len(window.confidence) + len(window.margin)
    drift = sum(_FEATURE_BYTES + _COUNT_BYTES * 2 * len(one.counts) for one in window.drift)
    own = _WINDOW_BYTES + _BIN_BYTES * len(window.latency.bins) + _COUNT_BYTES * scores + drift
    return own + (_shadow_bytes(window.shadow) if window.shadow is not None else 0)


def _shadow_bytes(shadow: ShadowCounts) -> int:
    bins = len(shadow.latency.bins) + len(shadow.serving_latency.bins)
    scores = (shadow.confidence, shadow.margin, shadow.serving_confidence, shadow.serving_margin, shadow.difference)
    return _WINDOW_BYTES + _BIN_BYTES * bins + _COUNT_BYTES * sum(map(len, scores))


def _loads(pending: Sequence[tuple[int, Window]]) -> list[list[tuple[int, Window]]]:
    loads: list[list[tuple[int, Window]]] = []
    room = 0
    for number, window in pending:
        size = _window_bytes(window)
        if not loads or size > room or len(loads[-1]) == WINDOWS_MAX:
            loads.append([])
            room = WINDOWS_BYTES_MAX
        loads[-1].append((number, window))
        room -= size
    return loads
