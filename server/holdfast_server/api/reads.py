"""Everything that can be asked, as the values that the JSON is made of. The API renders them, and the page draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select

from holdfast_server.audit import decisions
from holdfast_server.context import Context
from holdfast_server.core.segments import check_known
from holdfast_server.ingest.tally import Tally
from holdfast_server.registry import catalogue, fitting
from holdfast_server.rollouts import shadows, views
from holdfast_server.store import devices, outbox
from holdfast_server.store.devices import Device
from holdfast_server.store.schema import memberships
from holdfast_shared import __version__, selector, signing, strict_json
from holdfast_shared.assign import assign
from holdfast_shared.errors import Missing
from holdfast_shared.wire.assignment import TYPE, Assignment
from holdfast_shared.wire.report import PipelineReport, SlotReport


class Reads:
    """Each may be repeated, reads one snapshot, and changes nothing."""

    def __init__(self, context: Context, broker_connected: Callable[[], bool], tally: Tally | None = None) -> None:
        self._context = context
        self._broker_connected = broker_connected
        self._tally = tally if tally is not None else Tally()

    def status(self) -> Any:
        with self._context.database.read() as connection:
            count = connection.execute(select(func.count()).select_from(memberships)).scalar_one()
        return {
            "fleet": self._context.fleet,
            "version": __version__,
            "now": self._now(),
            "broker_connected": self._broker_connected(),
            "devices": count,
            "reports": self._tally.counts(),
            "over_quota": self._tally.flooding(),
        }

    def fleet(self) -> Any:
        with self._context.database.read() as connection:
            return views.fleet(connection, self._now())

    def devices(self, segment: str, after: str | None, limit: int) -> Any:
        """Raises Malformed for a selector with a typo: also for a label or a value that no device has."""
        terms = selector.parse(segment)
        with self._context.database.read() as connection:
            if terms and (labels := [one for _, one in devices.all_labels(connection)]):
                check_known(terms, labels, field="segment")
            found, more = devices.load_page(connection, terms, after=after or "", limit=limit)
        shown = [_device(one, self._now()) for one in found]
        return {"devices": shown, "next": shown[-1]["device"] if more else None}

    def device(self, device: str) -> Any:
        """With what it is expected to do, by the documents as they are out and its slots as it last reported them."""
        with self._context.database.read() as connection:
            found = devices.load_one(connection, device)
            if found is None:
                raise Missing(
                    f"no device {device[:64]!r} is enrolled",
                    field="device",
                    next_step="look at: holdfast device list; or enrol it: holdfast device enrol",
                )
            documents = _documents(connection, found)
            shown = _device(found, self._now())
            shown["presence"] = found.presence
            shown["accepted"] = msgspec.to_builtins(found.report.accepted) if found.report is not None else []
            shown["pipelines"] = [*shown["pipelines"], *_unreported(shown["pipelines"], documents)]
            for one in shown["pipelines"]:
                mine = [document for document in documents if document.pipeline == one["pipeline"]]
                one["prediction"] = _prediction(connection, mine, found, one["pipeline"])
                one["shadow"] = _shadow_of(connection, device, one, self._now())
        return shown

    def releases(self, pipeline: str | None = None) -> Any:
        with self._context.database.read() as connection:
            return catalogue.listed(connection, pipeline)

    def release(self, pipeline: str, version: str) -> Any:
        with self._context.database.read() as connection:
            return catalogue.shown(connection, pipeline, version)

    def shadow(self, pipeline: str, version: str) -> Any:
        """How the release did where it shadowed what served."""
        with self._context.database.read() as connection:
            return shadows.shown(connection, pipeline, version, self._now())

    def environments(self) -> Any:
        with self._context.database.read() as connection:
            return catalogue.listed_environments(connection)

    def environment(self, name: str, version: str) -> Any:
        with self._context.database.read() as connection:
            return catalogue.shown_environment(connection, name, version)

    def compared(self, pipeline: str, before: str, after: str) -> Any:
        with self._context.database.read() as connection:
            return catalogue.compared(connection, pipeline, before, after)

    def rollouts(self, pipeline: str | None = None) -> Any:
        with self._context.database.read() as connection:
            return views.rollouts(connection, pipeline)

    def rollout(self, rollout: str) -> Any:
        with self._context.database.read() as connection:
            return views.rollout(connection, rollout)

    def rollbacks(self) -> Any:
        with self._context.database.read() as connection:
            return views.rollbacks(connection)

    def rollback(self, rollback: str) -> Any:
        with self._context.database.read() as connection:
            return views.rollback(connection, rollback)

    def decisions(self, after: int | None, limit: int) -> Any:
        with self._context.database.read() as connection:
            return decisions.listed(connection, after=after, limit=limit)

    def _now(self) -> int:
        return self._context.now().at


def _device(device: Device, now: int) -> dict[str, Any]:
    report = device.report
    return {
        "device": device.device,
        "region": device.region,
        "labels": device.labels,
        "stage": device.stage,
        "counter": device.counter,
        "online": device.online(now),
        "last_seen_at": device.last_seen_at,
        "agent_version": report.agent_version if report is not None else None,
        "isolation": msgspec.to_builtins(report.isolation) if report is not None and report.isolation else None,
        "fingerprint": report.fingerprint if report is not None else {},
        "pipelines": [_pipeline(one) for one in report.pipelines] if report is not None else [],
    }


def _pipeline(reported: PipelineReport) -> dict[str, Any]:
    return {
        "pipeline": reported.pipeline,
        "state": reported.state,
        "serving": _slot(reported.serving),
        "current": _slot(reported.current),
        "previous": _slot(reported.previous),
        "candidate": _slot(reported.candidate),
        "single": reported.single,
        "degraded": reported.degraded,
        "condemned_here": [
            {
                "version": one.release.version,
                "digest": one.release.digest,
                "environment": one.environment,
                "attempt": one.attempt,
                "code": one.code,
                "at": one.at,
            }
            for one in reported.condemned_here
        ],
        "requests": views.requests(reported.requests),
        "waiting_for": reported.waiting_for,
    }


def _slot(slot: SlotReport | None) -> dict[str, Any] | None:
    if slot is None:
        return None
    return {
        "version": slot.release.version,
        "digest": slot.release.digest,
        "environment": slot.environment,
        "ready": slot.ready,
        "unproven": slot.unproven,
    }


def _documents(connection: Connection, device: Device) -> list[Assignment]:
    stored = [
        *outbox.stored_documents(connection, f"device/{device.device}"),
        *outbox.stored_documents(connection, f"region/{device.region}"),
    ]
    payloads = (signing.unverified_payload(one.envelope, TYPE, size_bytes_max=len(one.envelope)) for one in stored)
    return [strict_json.stored(payload, Assignment) for payload in payloads]


def _shadow_of(connection: Connection, device: str, pipeline: dict[str, Any], now: int) -> dict[str, Any] | None:
    """What it said lately of what shadows there, if anything does."""
    candidate = pipeline["candidate"]
    if pipeline["state"] != "shadowing" or candidate is None:
        return None
    return shadows.of_device(connection, device, pipeline["pipeline"], candidate["digest"], now)


def _prediction(connection: Connection, documents: list[Assignment], device: Device, pipeline: str) -> dict[str, Any]:
    """`unfit`: why it could not run what it should serve, by what it last said of itself; empty: nothing is in the way."""
    decision = assign(documents, device.view(pipeline))
    serve, unfit = decision.serve, ""
    if serve is not None and device.report is not None:
        asked = fitting.needs(connection, serve.release.digest, serve.environment)
        unfit = fitting.lacking(asked, device.report.machine)
    return {
        "serve": msgspec.to_builtins(serve.release) if serve is not None else None,
        "reason": decision.reason,
        "urgent": decision.urgent,
        "unfit": unfit,
    }


def _unreported(reported: Iterable[Any], documents: Iterable[Assignment]) -> list[dict[str, Any]]:
    """Pipelines that a document speaks of and the device has not spoken of yet."""
    known = {one["pipeline"] for one in reported}
    names = sorted({document.pipeline for document in documents} - known)
    return [_pipeline(PipelineReport(pipeline=name, state="idle")) for name in names]
