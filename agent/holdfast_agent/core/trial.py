"""A candidate on trial: confirmed by the gateway, soaked, and then committed; or left for what serves better.

Also what a commit may have left open: whether the release was proven.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core import departure, slots
from holdfast_agent.core.commands import Tell
from holdfast_agent.core.device import SECOND_US, Device
from holdfast_agent.core.events import Moment
from holdfast_agent.core.intent import allowed, usable
from holdfast_gateway.control import CloseWindows
from holdfast_shared.assign import Decision
from holdfast_shared.failure_codes import FailureCode

# What the gateway needs to close its windows and hand them over, before a trial is called unproven.
COUNT_GRACE_US: Final = 2 * SECOND_US
# A restarted agent hears of a breach within a second: a trial that ended meanwhile is not committed before.
RESUMED_SOAK_US: Final = 3 * SECOND_US


def soaked(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """The candidate serves until it has soaked. A changed decision drops it, if there is something good to go back to."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    candidate = pipeline.candidate
    assert candidate is not None
    if decision.serve is not None and decision.serve.key != candidate.key and usable(device, name, pipeline.current):
        assert pipeline.current is not None
        device = departure.taking_along(device, name, pipeline.current, now)
        changed = slots.drop_candidate(pipeline, max(now.at, 0), "superseded")
        return departure.without_work(device.with_pipeline(name, changed), name)
    release = device.release_of(candidate)
    if release is None or (live.activated != candidate and live.confirmed != candidate):
        return _unconfirmed(device, name, now)
    if live.activated != candidate:
        return _soaking(device, name, now, release.trial.soak_s * SECOND_US)
    proven = max(live.counted, live.tallied) >= release.trial.requests_min
    over = live.due_us is not None and (now.monotonic_us >= live.due_us or (proven and "counting" in live.told))
    if not over:
        return device
    if not proven and device.gateway.connected and "counting" not in live.told:
        live = replace(live, told=live.told | {"counting"}, due_us=now.monotonic_us + COUNT_GRACE_US)
        return device.with_live(name, live).doing(Tell(CloseWindows()))
    keep = pipeline.current is not None and not allowed(device, name, pipeline.current)
    device = device.with_pipeline(name, slots.commit(pipeline, proven=proven, keep_previous=keep))
    device = replace(device.with_live(name, replace(live, goal=None, due_us=None)), garbage=True)
    return device.telling(
        "committed", now, pipeline=name, target=candidate, code="" if proven else FailureCode.UNPROVEN
    )


def _unconfirmed(device: Device, name: str, now: Moment) -> Device:
    """The gateway does not say that the candidate serves, or its manifest is gone and nobody knows its soak: not for ever."""
    live = device.live_of(name)
    if not device.gateway.connected or live.due_us is None or now.monotonic_us < live.due_us:
        return device
    readable = device.release_of(device.record.pipeline(name).candidate) is not None
    code = FailureCode.UNCONFIRMED if readable else FailureCode.DAMAGED_BLOB
    why = "the gateway does not confirm it" if readable else "its manifest cannot be read"
    return departure.leave(device, name, now, code=code, detail=f"on trial, {why}", began_us=None)


def _soaking(device: Device, name: str, now: Moment, soak_us: int) -> Device:
    """The gateway confirms that the candidate serves: from now on the soak counts, on a clock that does not jump."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    left_us = soak_us
    if pipeline.deadline is None:
        device = device.with_pipeline(name, msgspec.structs.replace(pipeline, deadline=now.at + soak_us))
        device = device.telling(
            "activated", now, pipeline=name, target=pipeline.candidate, at_monotonic_us=live.confirmed_us
        )
    else:
        left_us = max(min(pipeline.deadline - now.at, soak_us), RESUMED_SOAK_US)
    live = replace(live, activated=pipeline.candidate, due_us=now.monotonic_us + left_us)
    return device.with_live(name, live)


def counted_enough(device: Device, name: str) -> Device:
    """Committed unproven: proven once enough requests were counted after all, and nothing speaks against it."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    release = device.release_of(pipeline.current)
    if not pipeline.unproven or release is None or max(live.counted, live.tallied) < release.trial.requests_min:
        return device
    if not usable(device, name, pipeline.current):
        return device
    return device.with_pipeline(name, msgspec.structs.replace(pipeline, unproven=False))
