"""Rollouts, rollbacks and the fleet as the API shows them: plain JSON values. Shares are in 1/10 000, times in microseconds."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from holdfast_server.core.plan import Member, Wave
from holdfast_server.core.returning import Returning
from holdfast_server.core.rollback import Rollback
from holdfast_server.core.rollout import Rollout, State, WaveProgress, incident_of
from holdfast_server.rollouts import storage
from holdfast_server.rollouts.fleet import Fleet
from holdfast_server.store import devices
from holdfast_shared import selector
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.command import ShadowPlan


def rollouts(connection: Connection, pipeline: str | None = None) -> dict[str, Any]:
    """`GET /rollouts`: the newest first."""
    found = storage.rollouts(connection, pipeline=pipeline)
    return {"rollouts": [_rollout(record) for record in reversed(found)]}


def rollout(connection: Connection, rollout_id: str) -> dict[str, Any]:
    """`GET /rollouts/<id>`: also the devices reached, and who is back since when. Raises Missing."""
    record = storage.rollout(connection, rollout_id)
    fleet = Fleet()
    fleet.refresh(connection)
    members = [Member(device=one.device, labels=one.labels) for one in fleet.devices.values()]
    reached = sorted(member.device for member in record.plan.reached(record.released, members))
    return {**_rollout(record), "reached": reached, "returned": _returned(record.returning)}


def rollbacks(connection: Connection) -> dict[str, Any]:
    """`GET /rollbacks`: the newest first."""
    return {"rollbacks": [_rollback(record) for record in reversed(storage.rollbacks(connection))]}


def rollback(connection: Connection, rollback_id: str) -> dict[str, Any]:
    """`GET /rollbacks/<id>`: also its devices, and since when each is back. Raises Missing."""
    record = storage.rollback(connection, rollback_id)
    return {**_rollback(record), "devices": _returned(record.returning)}


def fleet(connection: Connection, now: int) -> dict[str, Any]:
    """`GET /fleet`: per pipeline and region what devices last reported. A device that never spoke is counted in `devices`."""
    known = devices.load_all(connection)
    names = {one.pipeline for device in known if device.report is not None for one in device.report.pipelines}
    names.update(storage.pipelines(connection))
    return {"pipelines": {name: _regions(name, known, now) for name in sorted(names)}}


def _regions(pipeline: str, known: list[devices.Device], now: int) -> dict[str, Any]:
    regions: dict[str, Any] = {}
    for device in known:
        counts = regions.setdefault(
            device.region,
            {"devices": 0, "online": 0, "serving": {}, "states": {}, "single": 0, "degraded": 0, "shares": 0},
        )
        counts["devices"] += 1
        counts["online"] += device.online(now)
        said = device.pipeline(pipeline)
        if said is None:
            continue
        counts["states"][said.state] = counts["states"].get(said.state, 0) + 1
        counts["single"] += said.single
        counts["degraded"] += said.degraded
        counts["shares"] += said.requests is not None
        if said.serving is not None:
            version = said.serving.release.version
            counts["serving"][version] = counts["serving"].get(version, 0) + 1
    return regions


def _rollout(record: Rollout) -> dict[str, Any]:
    plan = record.plan
    verdict = next((wave.verdict for wave in reversed(record.waves) if wave.verdict is not None), None)
    halted = record.halted
    return {
        "id": record.id,
        "pipeline": plan.pipeline,
        "release": msgspec.to_builtins(plan.release),
        "previous": msgspec.to_builtins(plan.previous),
        "segment": selector.written(plan.segment),
        "state": str(record.state),
        "cause": record.cause,
        "planned_by": record.planned_by,
        "planned_at": record.planned_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "halted_at": halted.at if halted is not None else None,
        "halted_monotonic_us": halted.monotonic_us if halted is not None else None,
        "incident": incident_of(record) if record.state is State.HALTED else None,
        "waves": [_wave(wave, progress) for wave, progress in zip(plan.waves, record.waves, strict=True)],
        "gates": msgspec.to_builtins(plan.gates),
        "requests_min": plan.requests_min,
        "soak_s": plan.soak_s,
        "deadline_s": plan.deadline_s,
        "windows": msgspec.to_builtins(plan.windows),
        "spread_s": plan.spread_s,
        "shadow": _shadow(plan.shadow),
        "notes": list(plan.notes),
        "evidence": dict(verdict.evidence) if verdict is not None else {},
        "failing": list(verdict.failing) if verdict is not None else [],
        "devices_before": len(record.returning.devices),
        "devices_back": len(record.returning.back),
    }


def _wave(wave: Wave, progress: WaveProgress) -> dict[str, Any]:
    verdict = progress.verdict
    return {
        "number": wave.number,
        "regions": list(wave.regions),
        "labels": dict(wave.labels),
        "share": wave.share,
        "below": wave.below,
        "cohort": wave.devices,
        "adds": wave.adds,
        "real_share": wave.real_share,
        "requests": requests(wave.requests),
        "devices_min": wave.devices_min,
        "defect_seen": dict(wave.defect_seen),
        "state": str(progress.state),
        "released_at": progress.released_at,
        "passed_at": progress.passed_at,
        "deadline_at": progress.deadline_at,
        "verdict": str(verdict.verdict) if verdict is not None else None,
        "why": verdict.why if verdict is not None else "",
        "gates": msgspec.to_builtins(verdict.gates) if verdict is not None else [],
    }


def requests(given: Requests | None) -> dict[str, Any] | None:
    """A share of the requests, the segment as it is written; None: all of them."""
    if given is None:
        return None
    return {"share": given.share, "segment": selector.written(given.segment), "in_words": given.in_words}


def _rollback(record: Rollback) -> dict[str, Any]:
    return {
        "id": record.id,
        "pipeline": record.pipeline,
        "version": record.release.version,
        "to": record.to.version,
        "environment": record.environment,
        "to_environment": record.to.environment,
        "every_version": record.every_version,
        "also": [{"version": one.version, "environment": one.environment} for one in record.also],
        "segment": selector.written(record.segment),
        "reason": record.reason,
        "state": str(record.state),
        "why": record.why,
        "requested_by": record.requested_by,
        "requested_at": record.requested_at,
        "request": record.request,
        "approved_by": record.approved_by or None,
        "accepted_at": record.accepted_at,
        "accepted_monotonic_us": record.accepted_monotonic_us,
        "at": record.accepted_at or record.requested_at,
        "devices_before": len(record.returning.devices),
        "devices_back": len(record.returning.back),
    }


def _returned(returning: Returning) -> list[dict[str, Any]]:
    """Every device that served the release, with the moment of its first signed report that another serves, or null."""
    return [{"device": device, "back_at_monotonic_us": returning.back.get(device)} for device in returning.devices]


def _shadow(asked: ShadowPlan | None) -> dict[str, Any] | None:
    """With its defaults written out."""
    if asked is None:
        return None
    return {name: getattr(asked, name) for name in ("agreement_min", "rows_min", "hours_min")}
