"""Devices as the database knows them: membership and newest report together, parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, select

from holdfast_server.store.schema import device_state, memberships
from holdfast_shared import selector, strict_json
from holdfast_shared.assign import LocalCondemnation, Target, View
from holdfast_shared.wire.membership import RESERVED_LABELS
from holdfast_shared.wire.report import PipelineReport, Report, SlotReport

# Three health reports at the default interval of 60 s: one may be lost, one late.
SEEN_LATELY_US: Final = 180 * 1_000_000
# Parameters of one query: SQLite allows 32,766, older ones 999.
QUERIED_MAX: Final = 500


class Device(NamedTuple):
    """`selectable`: every label a selector may ask for. `report`: the newest, None before the first."""

    device: str
    region: str
    stage: str
    counter: int
    selectable: dict[str, str]
    report: Report | None
    last_seen_at: int | None
    presence: str

    @property
    def labels(self) -> dict[str, str]:
        """Its own labels, without the membership's fields."""
        return {name: value for name, value in self.selectable.items() if name not in RESERVED_LABELS}

    def online(self, now: int) -> bool:
        """Whether a report of it came lately. Its presence can only say that it is gone: a hint, never evidence."""
        return self.last_seen_at is not None and now - self.last_seen_at < SEEN_LATELY_US and self.presence != "offline"

    def pipeline(self, name: str) -> PipelineReport | None:
        if self.report is None:
            return None
        return next((one for one in self.report.pipelines if one.pipeline == name), None)

    def view(self, pipeline: str) -> View:
        """What `assign` is asked with: the *last reported* slots."""
        reported = self.pipeline(pipeline)
        if reported is None:
            return View(device=self.device, labels=self.selectable)
        return View(
            device=self.device,
            labels=self.selectable,
            current=_target(reported.current),
            previous=_target(reported.previous),
            candidate=_target(reported.candidate) if reported.state == "trial" else None,
            condemned_here=tuple(
                LocalCondemnation(target=Target(release=one.release, environment=one.environment), attempt=one.attempt)
                for one in reported.condemned_here
            ),
        )


def load_all(connection: Connection) -> list[Device]:
    """Every enrolled device, by id."""
    return [_device(row) for row in connection.execute(_selected())]


def load_page(
    connection: Connection, segment: Sequence[selector.Term], *, after: str, limit: int
) -> tuple[list[Device], bool]:
    """At most `limit` devices of a segment, by id from after `after` on; and whether there are more."""
    ids = [device for device, labels in all_labels(connection) if device > after and selector.holds(segment, labels)]
    found: list[Device] = []
    for start in range(0, min(limit, len(ids)), QUERIED_MAX):
        wanted = ids[start : min(start + QUERIED_MAX, limit)]
        found += [_device(row) for row in connection.execute(_selected().where(memberships.c.device.in_(wanted)))]
    return found, len(ids) > limit


def all_labels(connection: Connection) -> list[tuple[str, dict[str, str]]]:
    """Every device with all that a selector may ask of it, by id."""
    rows = connection.execute(select(memberships.c.device, memberships.c.labels).order_by(memberships.c.device))
    return [(row.device, strict_json.stored(row.labels, dict[str, str])) for row in rows]


def load_one(connection: Connection, device: str) -> Device | None:
    row = connection.execute(_selected().where(memberships.c.device == device)).one_or_none()
    return None if row is None else _device(row)


def regions(connection: Connection) -> list[str]:
    """Every region that has a device."""
    return list(connection.execute(select(memberships.c.region).distinct().order_by(memberships.c.region)).scalars())


def _selected() -> Select[Any]:
    return (
        select(
            memberships.c.device,
            memberships.c.region,
            memberships.c.stage,
            memberships.c.counter,
            memberships.c.labels,
            device_state.c.report,
            device_state.c.last_seen_at,
            device_state.c.presence,
        )
        .join_from(memberships, device_state, memberships.c.device == device_state.c.device, isouter=True)
        .order_by(memberships.c.device)
    )


def _device(row: Row[Any]) -> Device:
    return Device(
        row.device,
        row.region,
        row.stage,
        row.counter,
        strict_json.stored(row.labels, dict[str, str]),
        strict_json.stored(row.report, Report) if row.report is not None else None,
        row.last_seen_at if row.report is not None else None,
        row.presence or "",
    )


def _target(slot: SlotReport | None) -> Target | None:
    return Target(release=slot.release, environment=slot.environment) if slot is not None else None
