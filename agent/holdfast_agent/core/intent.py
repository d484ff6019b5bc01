"""What a device means to do of one pipeline, from its documents and its slots: `assign`'s decision, and what stands in its way.

The decision is never stored. It is computed again at every event, so what supersedes work under way is a changed decision,
never a newer document that decides the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from holdfast_agent.core import spread, windows
from holdfast_agent.core.acceptance import not_understood
from holdfast_agent.core.deadlines import SHADOW_HOURS_MAX
from holdfast_agent.core.device import Device, Goal
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord, State
from holdfast_shared.assign import Decision, Target, View, assign, attempt_allowed, condemned, condemned_by_documents
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.semver import Version

# What is done beside what serves: the windows of the rule that serves are not its own.
_BESIDE: Final = ("stage", "shadow")
# A slot whose worker fails with this has bad bytes, not a bad model: nothing is condemned, and the bytes are fetched again.
DAMAGED: Final = FailureCode.DAMAGED_BLOB


def view_of(device: Device, name: str) -> View:
    pipeline = device.record.pipeline(name)
    return View(
        device=device.own.membership.device,
        labels=device.own.membership.selectable,
        current=pipeline.current,
        previous=pipeline.previous,
        candidate=pipeline.candidate if pipeline.state is State.TRIAL else None,
        condemned_here=pipeline.condemned_here,
    )


def decision_of(device: Device, name: str) -> Decision:
    return assign(device.documents_of(name), view_of(device, name))


def allowed(device: Device, name: str, target: Target | None) -> bool:
    """Whether there is such a target and it is condemned neither by a document nor here."""
    return target is not None and not condemned(device.documents_of(name), view_of(device, name), target)


def usable(device: Device, name: str, target: Target | None) -> bool:
    """Whether the device may turn to this slot: allowed, and its worker has not failed as far as we know."""
    return allowed(device, name, target) and not device.gateway.failed(name, target)


def refuge_of(device: Device, name: str) -> Target | None:
    """The record's refuge, by the documents as they are now: within a step the record may not say yet what they condemn."""
    return with_barred(device, name).record.pipeline(name).refuge


def with_barred(device: Device, name: str) -> Device:
    """With what the documents say of the slots in the record, for whoever starts from it alone."""
    pipeline, documents, view = device.record.pipeline(name), device.documents_of(name), view_of(device, name)
    barred = tuple(slot.key for slot in pipeline.held if condemned_by_documents(documents, view, slot))
    if barred == pipeline.barred:
        return device
    return device.with_pipeline(name, msgspec.structs.replace(pipeline, barred=barred))


def attempt_of(device: Device, name: str, target: Target) -> int:
    """The attempt number at which a condemnation of the release here and now is recorded."""
    return attempt_allowed(device.documents_of(name), view_of(device, name), target.release.digest)


def incident_of(device: Device, name: str, target: Target) -> str:
    """The incident for which a document condemns the target, or nothing."""
    view = view_of(device, name)
    alone = (
        msgspec.structs.replace(document, condemned=(entry,))
        for document in device.documents_of(name)
        for entry in document.condemned
    )
    return next((one.condemned[0].incident for one in alone if condemned_by_documents([one], view, target)), "")


def goal_of(device: Device, name: str, decision: Decision) -> Goal | None:
    """The first thing that is missing."""
    return next(goals_of(device, name, decision), None)


def goals_of(device: Device, name: str, decision: Decision) -> Iterator[Goal]:
    """All that is missing: what should serve, slots' damaged bytes, the standby, what is to be staged, what is to shadow."""
    pipeline = device.record.pipeline(name)
    if decision.serve is not None and not _is(pipeline.current, decision.serve):
        yield Goal("serve", decision.serve)
    yield from (Goal("repair", slot) for slot in pipeline.held if _damaged(device, name, slot))
    if decision.standby is not None and pipeline.current is not None:
        wanted = not _is(pipeline.current, decision.standby) and not _is(pipeline.previous, decision.standby)
        if wanted and not allowed(device, name, pipeline.previous):
            yield Goal("standby", decision.standby)
    staged = device.live_of(name).staged | {slot.key for slot in (pipeline.current, pipeline.previous) if slot}
    yield from (Goal("stage", target) for target in decision.stage if target.key not in staged)
    shadow = shadow_of(device, name, decision)
    if shadow is not None:
        yield Goal("shadow", shadow)


def shadow_of(device: Device, name: str, decision: Decision) -> Target | None:
    """What is to shadow what serves: while that is as it should be, and until it has shadowed long enough."""
    pipeline, shadow = device.record.pipeline(name), decision.shadow
    if shadow is None or pipeline.current is None or _is(pipeline.current, shadow) or decision.urgent:
        return None
    if device.gateway.failed(name, pipeline.current):  # there is nothing to compare it with, and an outage to mend
        return None
    if decision.serve is not None and not _is(pipeline.current, decision.serve):
        return None
    done = pipeline.shadowed
    over = done is not None and done.target == shadow.key and done.hours >= SHADOW_HOURS_MAX
    return None if over and pipeline.state is not State.SHADOWING else shadow


def obstacle(device: Device, name: str, decision: Decision, goal: Goal, now: Moment) -> str:
    """What stands in the way of going forward, in words, or nothing. Going back never asks here."""
    if goal.purpose == "repair":
        return ""
    for document in device.documents_of(name):
        unknown = not_understood(document)
        if unknown:
            return f"the document of {document.scope.key} calls critical what this agent does not know: {', '.join(unknown)}"
        if document.rules and document.not_after < now.at:
            return f"the document of {document.scope.key} has expired"
        if document.floor is not None and Version(goal.target.release.version) < Version(document.floor):
            return f"{goal.target.release.version} is below the floor {document.floor}"
    release = device.release_of(goal.target)
    needed = release.agent_version_min if release is not None else None
    if needed is not None and Version(device.own.agent_version) < Version(needed):
        return f"the release needs an agent of version {needed}; this one is {device.own.agent_version}"
    return "" if goal.purpose != "serve" else _obstacle_to_serving(device, name, decision, now)


def counts(device: Device, decision: Decision, goal: Goal, now: Moment) -> bool:
    """Whether time counts against what is staged: not while the rule itself says that it is to wait."""
    if closed_to_switch(device, decision, goal, now):
        return False
    return decision.urgent or decision.not_before is None or decision.not_before <= now.at


def _obstacle_to_serving(device: Device, name: str, decision: Decision, now: Moment) -> str:
    if decision.urgent:
        return ""  # what serves is condemned: shares, windows and spread do not apply
    if decision.requests is not None and device.record.pipeline(name).current is None:
        return "the rule gives it a share of the requests, and no release is here that could answer the others"
    if decision.not_before is not None and decision.not_before > now.at:
        return "the rule's not_before has not come yet"
    return spread.in_the_way(device, name, decision, now)


def closed_to_download(device: Device, decision: Decision, goal: Goal, now: Moment) -> str:
    """The window, in words, that a download waits for, by the device's configuration or the rule; or nothing."""
    if decision.urgent or goal.purpose == "repair":
        return ""
    rules = decision.windows.download if decision.windows is not None and goal.purpose not in _BESIDE else ()
    closed = [spans for spans in (device.own.download, rules) if not windows.is_open(spans, now.at, device.own.zone)]
    return f"the download window {windows.written(closed[0])}" if closed else ""


def closed_to_switch(device: Device, decision: Decision, goal: Goal, now: Moment) -> str:
    """The window, in words, that the rule lets a switch begin in; or nothing. One that has begun is carried through."""
    if decision.urgent or goal.purpose != "serve" or decision.windows is None:
        return ""
    spans = decision.windows.switch
    return "" if windows.is_open(spans, now.at, device.own.zone) else f"the switch window {windows.written(spans)}"


def perhaps_on_disk(device: Device, name: str) -> frozenset[str]:
    """What may be fetched next, by key: an agent that was just started does not know what of it is on its disk."""
    decision = decision_of(device, name)
    wanted = (decision.serve, decision.standby, *decision.stage, decision.shadow)
    return frozenset(one.key for one in wanted if one is not None)


def windows_matter(device: Device, name: str) -> bool:
    """Whether what this pipeline does next may hang on the time of day."""
    given = decision_of(device, name).windows
    if not device.own.download and given is None:
        return False
    return device.record.pipeline(name).state in (State.FETCHING, State.STAGED) or bool(
        device.live_of(name).waiting_for
    )


def wanted_digests(device: Device, name: str) -> set[str]:
    """Every release and environment that a slot names or the decision may soon need: what must not be deleted."""
    pipeline, decision = device.record.pipeline(name), decision_of(device, name)
    shadow = shadow_of(device, name, decision)
    return {
        digest
        for target in (*_slots(pipeline), decision.serve, decision.standby, *decision.stage, shadow)
        if target
        for digest in target.digests
    }


def _slots(pipeline: PipelineRecord) -> tuple[Target | None, ...]:
    return (pipeline.current, pipeline.previous, pipeline.candidate)


def _is(slot: Target | None, target: Target) -> bool:
    return slot is not None and slot.key == target.key


def _damaged(device: Device, name: str, slot: Target) -> bool:
    if slot.digests & set(device.record.damaged):
        return True
    status = device.gateway.slot(name, slot)
    return status is not None and status.state == "failed" and status.code == DAMAGED
