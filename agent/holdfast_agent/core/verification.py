"""Bit rot, found while nothing else is to be done: every slot's bytes are read again from time to time.

What does not verify is fetched again, and the device is `degraded` until it is whole, across restarts of the agent. What
serves goes on serving meanwhile: its worker has the bytes in memory, and so has the refuge's. What cannot be read is no damage:
it is told, and read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core import slots
from holdfast_agent.core.commands import VerifySlots
from holdfast_agent.core.device import SECOND_US, Device, Verification
from holdfast_agent.core.events import Moment, SlotsVerified
from holdfast_agent.core.record import State
from holdfast_shared.assign import Target
from holdfast_shared.failure_codes import FailureCode

# What could not be read is tried again sooner: it may be damaged, and nobody mends what nobody has read.
UNREADABLE_US: Final = 3600 * SECOND_US
# Whoever reads has a slow disk and reads slowly on purpose; past this it has been forgotten, and is asked anew.
DEADLINE_US: Final = 6 * 3600 * SECOND_US


def first(device: Device, now: Moment) -> Device:
    """When the first verification after a start is due: a fleet that lost its power together does not read together."""
    due_us = now.monotonic_us + int(device.own.verify_us * device.own.verify_draw)
    return replace(device, verification=Verification(due_us=due_us))


def verified(device: Device, said: SlotsVerified, now: Moment) -> Device:
    """After the bytes were read. What no slot names any more, or was not asked for, is nobody's business."""
    if device.verification.until_us is None:
        return device
    wait_us = int(device.own.verify_us * (0.5 + said.draw))
    if said.unreadable:
        wait_us = min(wait_us, UNREADABLE_US)
    before = device.verification.unreadable
    next_ = Verification(due_us=now.monotonic_us + wait_us, unreadable=frozenset(said.unreadable))
    device = replace(device, verification=next_)
    known = set(device.record.damaged)
    for digest in sorted(known & said.whole):
        device = mended(device, digest, now)
    for name, slot in _slots(device):
        unreadable = sorted(slot.digests & said.unreadable.keys())
        if slot.digests <= said.whole:
            device = device.with_pipeline(name, slots.read_whole(device.record.pipeline(name), slot))
        elif unreadable and not slot.digests & before:
            detail = f"its bytes cannot be read: {said.unreadable[unreadable[0]]}"
            device = device.telling(
                "degraded", now, pipeline=name, target=slot, code=FailureCode.UNREADABLE, detail=detail
            )
    fresh = said.damaged - known  # of these, what no slot names any more is dropped in `settled`
    for name, slot in _slots(device):
        if slot.digests & fresh:
            device = device.telling(
                "degraded",
                now,
                pipeline=name,
                target=slot,
                code=FailureCode.DAMAGED_BLOB,
                detail="its bytes on this disk do not verify any more; they are fetched again",
            )
    return _with_damaged(device, set(device.record.damaged) | fresh)


def mended(device: Device, digest: str, now: Moment) -> Device:
    """The release or environment is whole: it was fetched or built again, or reads well after all."""
    if digest not in device.record.damaged:
        return device
    for name, slot in _slots(device):
        if digest in slot.digests:
            device = device.telling("staged", now, pipeline=name, target=slot, detail="whole again")
    return _with_damaged(device, set(device.record.damaged) - {digest})


def settled(device: Device, now: Moment) -> Device:
    """With a verification begun when it is due and nothing else is under way; without damage that no slot has any more."""
    named = list(_slots(device))
    device = _with_damaged(
        device, set(device.record.damaged) & {digest for _, slot in named for digest in slot.digests}
    )
    known = device.verification
    if known.until_us is not None and now.monotonic_us >= known.until_us:
        known = replace(known, due_us=now.monotonic_us + device.own.verify_us, until_us=None)
        device = replace(device, verification=known)
    if known.until_us is not None or now.monotonic_us < known.due_us or not _idle(device):
        return device
    if not named:
        return replace(device, verification=Verification(due_us=now.monotonic_us + device.own.verify_us))
    device = replace(device, verification=replace(known, until_us=now.monotonic_us + DEADLINE_US))
    return device.doing(VerifySlots(frozenset(digest for _, slot in named for digest in slot.digests)))


def _idle(device: Device) -> bool:
    """Shadowing, and a trial of a share, may last for weeks, and bits rot meanwhile."""
    pipelines = [device.record.pipeline(name) for name in device.names]
    resting = (State.IDLE, State.SHADOWING)
    return device.fetch is None and all(one.state in resting or one.requests is not None for one in pipelines)


def _slots(device: Device) -> Iterator[tuple[str, Target]]:
    """What every pipeline holds: a candidate that does not serve was verified when it came, a minute ago."""
    for name, pipeline in sorted(device.record.pipelines.items()):
        yield from ((name, slot) for slot in pipeline.held)


def _with_damaged(device: Device, digests: set[str]) -> Device:
    damaged = tuple(sorted(digests))
    if damaged == device.record.damaged:
        return device
    return replace(device, record=msgspec.structs.replace(device.record, damaged=damaged))
