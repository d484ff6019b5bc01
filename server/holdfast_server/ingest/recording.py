"""A batch of believed reports into the tables, in the caller's transaction. May be repeated, in any order.

- A report counts once, by (device, incarnation, number); a window once, by (device, incarnation, pipeline, window).
- A device's newest report only moves forward. A doubled report changes nothing at all, so a replay keeps nobody alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Table, func, select

from holdfast_server.ingest import floors, rows
from holdfast_server.store import changes
from holdfast_server.store.outbox import Director
from holdfast_server.store.schema import device_events, device_state, memberships, reports_seen, windows
from holdfast_server.store.upsert import insert_into
from holdfast_shared.wire.report import Report

# A device whose state directory was lost may come back with its clock behind: a *new* incarnation is believed although its
# clock says earlier, once the old one has been silent for this long. What the new one said meanwhile does not break the silence.
INCARNATION_SILENT_US: Final = 300 * 1_000_000


class Recorded(NamedTuple):
    """How many reports were new; claims that were not believed; whether a document of ours was overtaken."""

    new: int
    disbelieved: tuple[str, ...]
    overtaken: bool


class Held(NamedTuple):
    """What a report is compared with: the newest one held of its device."""

    incarnation: str | None
    number: int | None
    sent_at: int | None


def is_newer(held: Held | None, report: Report) -> bool:
    """Whether `report` was made after what is held of its device, as far as the device's numbers and clock can tell."""
    if held is None or held.incarnation is None:
        return True
    if held.incarnation == report.incarnation:
        return report.number > (held.number or 0)
    return report.sent_at > (held.sent_at or 0)


def record(connection: Connection, director: Director, reports: Sequence[Report], now: int) -> Recorded:
    """Store what is new in `reports`. Reports of devices that are no longer enrolled are passed over."""
    regions = _regions(connection, {report.device for report in reports})
    wanted = {_key(report): report for report in reports if report.device in regions}
    if not wanted:
        return Recorded(0, (), overtaken=False)
    new = _unseen(connection, wanted, now)
    if not new:
        return Recorded(0, (), overtaken=False)
    _insert(connection, windows, [row for report in new for row in rows.windows(report, now)])
    _insert(connection, device_events, [row for report in new for row in rows.events(report, now)])
    _keep_newest(connection, new, now)
    raised = floors.raise_floors(connection, director, new, regions)
    changes.mark(connection, "fleet")
    return Recorded(len(new), raised.disbelieved, raised.overtaken)


def _key(report: Report) -> tuple[str, str, int]:
    return report.device, report.incarnation, report.number


def _regions(connection: Connection, devices: Iterable[str]) -> dict[str, str]:
    statement = select(memberships.c.device, memberships.c.region).where(memberships.c.device.in_(sorted(devices)))
    return {row.device: row.region for row in connection.execute(statement)}


def _unseen(connection: Connection, wanted: dict[tuple[str, str, int], Report], now: int) -> list[Report]:
    """Those that were not seen before, noted as seen, in the order in which their devices made them."""
    statement = (
        insert_into(connection, reports_seen)
        .values([rows.seen(report, now) for report in wanted.values()])
        .on_conflict_do_nothing()
        .returning(reports_seen.c.device, reports_seen.c.incarnation, reports_seen.c.number)
    )
    found = {(row.device, row.incarnation, row.number) for row in connection.execute(statement)}
    return sorted((wanted[key] for key in found), key=lambda report: (report.sent_at, report.number))


def _insert(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    if values:
        connection.execute(insert_into(connection, table).on_conflict_do_nothing(), values)


def _keep_newest(connection: Connection, new: list[Report], now: int) -> None:
    held = _held(connection, {report.device for report in new})
    newest: dict[str, Report] = {}
    for report in new:
        before = held.get(report.device)
        if is_newer(before, report) or (before is not None and _has_begun_anew(connection, before, report, now)):
            newest[report.device] = report
            held[report.device] = Held(report.incarnation, report.number, report.sent_at)
    late = sorted({report.device for report in new} - newest.keys())
    if newest:
        statement = insert_into(connection, device_state)
        columns = ("incarnation", "number", "sent_at", "report", "last_seen_at")
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["device"], set_={name: statement.excluded[name] for name in columns}
            ),
            [rows.state(report, now) for report in newest.values()],
        )
    if late:
        connection.execute(device_state.update().where(device_state.c.device.in_(late)).values(last_seen_at=now))


def _has_begun_anew(connection: Connection, held: Held, report: Report, now: int) -> bool:
    """Whether the report is of an incarnation that was first heard after the held one spoke last, and that is long ago.

    An older incarnation, sent again, was heard before: retention keeps the newest number of each.
    """
    if held.incarnation == report.incarnation:
        return False
    at = reports_seen.c.received_at
    statement = (
        select(reports_seen.c.incarnation, func.min(at).label("first"), func.max(at).label("last"))
        .where(
            reports_seen.c.device == report.device,
            reports_seen.c.incarnation.in_([held.incarnation, report.incarnation]),
        )
        .group_by(reports_seen.c.incarnation)
    )
    heard = {row.incarnation: row for row in connection.execute(statement)}
    if held.incarnation not in heard:
        return False
    last = heard[held.incarnation].last
    return bool(now - last > INCARNATION_SILENT_US and heard[report.incarnation].first > last)


def _held(connection: Connection, devices: Iterable[str]) -> dict[str, Held]:
    statement = select(device_state).where(device_state.c.device.in_(sorted(devices)))
    return {row.device: _of(row) for row in connection.execute(statement)}


def _of(row: Row[Any]) -> Held:
    return Held(row.incarnation, row.number, row.sent_at)
