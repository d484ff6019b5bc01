"""A candidate on trial: confirmed by the gateway, soaked, and then committed; or left for what serves better.

- With a share of the requests it is not committed: it lasts until the decision changes, and `current` answers the others.
- Also what a commit may have left open: whether the release was proven.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core import departure, slots
from holdfast_agent.core.commands import Tell
from holdfast_agent.core.device import SECOND_US, Device
from holdfast_agent.core.events import Moment
from holdfast_agent.core.guardrails import breach_of, told_of
from holdfast_agent.core.intent import allowed, usable
from holdfast_agent.core.record import PipelineRecord
from holdfast_gateway.control import CloseWindows, Tallied
from holdfast_shared.assign import Decision
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.wire.assignment import Requests

# What the gateway needs to close its windows and hand them over, before a trial is called unproven.
COUNT_GRACE_US: Final = 2 * SECOND_US
# A restarted agent hears of a breach within a second: a trial that ended meanwhile is not committed before.
RESUMED_SOAK_US: Final = 3 * SECOND_US


def soaked(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """The candidate serves until it has soaked. A changed decision drops it, if there is something good to go back to."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    candidate = pipeline.candidate
    assert candidate is not None
    if _is_superseded(pipeline, decision) and usable(device, name, pipeline.current):
        assert pipeline.current is not None
        device = departure.taking_along(device, name, pipeline.current, now)
        changed = slots.drop_candidate(pipeline, max(now.at, 0), "superseded")
        return departure.without_work(device.with_pipeline(name, changed), name)
    requests = requests_of(pipeline, decision)
    if requests != pipeline.requests:
        return _shared_otherwise(device, name, now, requests)
    release = device.release_of(candidate)
    if release is None or (live.activated != candidate and live.confirmed != candidate):
        return _unconfirmed(device, name, now)
    if live.activated != candidate:
        return _soaking(device, name, now, release.trial.soak_s * SECOND_US)
    if requests is not None:
        return _lasting(device, name, now)
    proven = max(live.counted, live.tallied) >= release.trial.requests_min
    over = live.due_us is not None and (now.monotonic_us >= live.due_us or (proven and "counting" in live.told))
    if not over:
        return device
    if not proven and device.gateway.connected and "counting" not in live.told:
        live = replace(live, told=live.told | {"counting"}, due_us=now.monotonic_us + COUNT_GRACE_US)
        return device.with_live(name, live).doing(Tell(CloseWindows()))
    keep = pipeline.current is not None and not allowed(device, name, pipeline.current)
    committed = slots.commit(pipeline, proven=proven, keep_previous=keep)
    device = departure.without_work(device.with_pipeline(name, committed), name)
    return device.telling(
        "committed", now, pipeline=name, target=candidate, code="" if proven else FailureCode.UNPROVEN
    )


def requests_of(pipeline: PipelineRecord, decision: Decision) -> Requests | None:
    """The requests that the candidate is to answer; None: all, also where nothing else is here that could answer any."""
    candidate = pipeline.candidate
    meant = decision.serve is not None and candidate is not None and decision.serve.key == candidate.key
    return decision.requests if meant and pipeline.current is not None else None


def judged_beside(device: Device, said: Tallied, now: Moment) -> Device:
    """After counts of `current`, which answers the other requests: a breach of its own is told, and ends no trial."""
    release = device.release_of(said.target)
    if release is None:
        return device
    leading = breach_of(release, said.window)
    for one in (*told_of(release, said.window), *([leading] if leading is not None else [])):
        device = departure.warn(device, said.pipeline, now, code=one.code, detail=one.detail, target=said.target)
    return device


def _is_superseded(pipeline: PipelineRecord, decision: Decision) -> bool:
    """Another release is to serve; or none is, and a rule gave this one only a share: nothing says that it may have all."""
    if decision.serve is None:
        return pipeline.requests is not None
    return pipeline.candidate is None or decision.serve.key != pipeline.candidate.key


def _shared_otherwise(device: Device, name: str, now: Moment, requests: Requests | None) -> Device:
    """Other requests, and no other slot: only the soak begins anew, for it has not seen these."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    release = device.release_of(pipeline.candidate)
    soak_us = release.trial.soak_s * SECOND_US if release is not None else 0
    deadline = now.at + soak_us if pipeline.deadline is not None else None
    device = device.with_pipeline(name, slots.share(pipeline, requests, deadline))
    if live.activated != pipeline.candidate:
        return device
    live = replace(live, due_us=now.monotonic_us + soak_us, told=live.told - {"counting"})
    return device.with_live(name, live)


def _lasting(device: Device, name: str, now: Moment) -> Device:
    """No commit. Starts of the machine count no longer once it has soaked: in weeks there are some, and they are no loop."""
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    if live.due_us is None or now.monotonic_us < live.due_us:
        return departure.reload_failed(device, name, now)
    device = device.with_pipeline(name, msgspec.structs.replace(pipeline, trial_starts=0))
    return device.with_live(name, replace(live, due_us=None))


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
    elif pipeline.requests is None:
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
