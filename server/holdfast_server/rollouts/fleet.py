"""The fleet as it last spoke: memberships and newest reports, read once and then only what is new."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, func, select

from holdfast_server.core.plan import Member
from holdfast_server.core.release_in import ReleaseIn, Taken, in_environment
from holdfast_server.core.returning import Said
from holdfast_server.registry import fitting
from holdfast_server.registry.fitting import Needs
from holdfast_server.store import schema
from holdfast_server.store.devices import SEEN_LATELY_US
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.report import MachineFacts, PipelineReport

# Parameters of one query: SQLite allows 32,766, older ones 999.
QUERIED_MAX: Final = 500
# Long enough for a few windows of a quiet device, short enough to be about now.
RATE_WINDOW_US: Final = 120_000_000
# Kinds of machines whose fitness is remembered while one plan is made: a fleet has a few.
MACHINES_MAX: Final = 1_000


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """Of a device's newest report, what is needed here; the rest of it is passed over."""

    sent_at: int
    sent_monotonic_us: int
    boot: str
    pipelines: tuple[PipelineReport, ...] = ()
    machine: MachineFacts | UnsetType = UNSET

    def of(self, pipeline: str) -> PipelineReport | None:
        return next((one for one in self.pipelines if one.pipeline == pipeline), None)


_spoken: Final[msgspec.json.Decoder[Spoken]] = msgspec.json.Decoder(Spoken)
_labels: Final[msgspec.json.Decoder[dict[str, str]]] = msgspec.json.Decoder(dict[str, str])


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A member with its newest report, if it ever sent one."""

    device: str
    labels: dict[str, str]
    last_seen_at: int = 0
    spoken: Spoken | None = None

    @property
    def clock_behind_us(self) -> int:
        """What its clock is behind ours, the way of its newest report included."""
        return self.last_seen_at - self.spoken.sent_at if self.spoken is not None else 0

    def serving(self, pipeline: str) -> ReleaseIn | None:
        """What the device says it serves, and in which environment."""
        found = self.spoken.of(pipeline) if self.spoken is not None else None
        if found is None or found.serving is None:
            return None
        return in_environment(found.serving.release, found.serving.environment)

    def requests(self, pipeline: str) -> Requests | None:
        """The requests that it says it gives to what it serves; None: all."""
        found = self.spoken.of(pipeline) if self.spoken is not None else None
        return found.requests if found is not None else None

    def shadowing(self, pipeline: str) -> ReleaseIn | None:
        """What the device says that it has shadow what serves."""
        found = self.spoken.of(pipeline) if self.spoken is not None else None
        if found is None or found.candidate is None or found.state != "shadowing":
            return None
        return in_environment(found.candidate.release, found.candidate.environment)

    def condemned_here(self, pipeline: str, release: ReleaseIn) -> str | None:
        """The code for which the device condemned the pair by itself; None when it did not."""
        found = self.spoken.of(pipeline) if self.spoken is not None else None
        for one in found.condemned_here if found is not None else ():
            if release.is_of(one.release.digest, one.environment):
                return one.code or "condemned_here"
        return None


class Fleet:
    """All devices in memory, brought up to date by `refresh`. Not for several threads at once."""

    __slots__ = ("_gone", "_members", "devices", "version")

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.version = 0  # grows with every change of a membership
        self._members: tuple[int, int] = (-1, -1)
        self._gone: frozenset[str] = frozenset()

    def refresh(self, connection: Connection) -> list[str]:
        """Read what is new; the devices whose newest report changed."""
        self._refresh_members(connection)
        return self._refresh_reports(connection)

    def online(self, device: Device, now: int) -> bool:
        """Whether it is waited for: it spoke lately and, by its presence, is not known to have left."""
        return (
            device.spoken is not None and now - device.last_seen_at < SEEN_LATELY_US and device.device not in self._gone
        )

    def _refresh_members(self, connection: Connection) -> None:
        table = schema.memberships
        count, newest = connection.execute(select(func.count(), func.max(table.c.received_at))).one()
        if (count, newest or 0) == self._members:
            return
        found = {
            row.device: _labels.decode(row.labels) for row in connection.execute(select(table.c.device, table.c.labels))
        }
        known = self.devices
        self.devices = {
            device: msgspec.structs.replace(known[device], labels=labels)
            if device in known
            else Device(device=device, labels=labels)
            for device, labels in found.items()
        }
        self._members = (count, newest or 0)
        self.version += 1

    def _refresh_reports(self, connection: Connection) -> list[str]:
        table = schema.device_state
        rows = connection.execute(
            select(table.c.device, table.c.last_seen_at, table.c.presence).where(table.c.report.is_not(None))
        ).all()
        self._gone = frozenset(row.device for row in rows if row.presence == "offline")
        changed = [
            row.device
            for row in rows
            if (known := self.devices.get(row.device)) is not None and known.last_seen_at != row.last_seen_at
        ]
        for start in range(0, len(changed), QUERIED_MAX):
            found = connection.execute(
                select(table.c.device, table.c.report, table.c.last_seen_at).where(
                    table.c.device.in_(changed[start : start + QUERIED_MAX])
                )
            )
            for row in found:
                self.devices[row.device] = msgspec.structs.replace(
                    self.devices[row.device], last_seen_at=row.last_seen_at, spoken=_spoken.decode(row.report)
                )
        return changed

    def said(
        self, devices: Iterable[str], pipeline: str, taken: Taken, *, boot: str, now_monotonic_us: int
    ) -> Iterator[Said]:
        """Their newest words on one pipeline, by the mark of what is `taken` back where they serve it.

        At their own monotonic time where that is our machine's too.
        """
        for name in devices:
            device = self.devices.get(name)
            if device is None or device.spoken is None:
                continue
            at = device.spoken.sent_monotonic_us if device.spoken.boot == boot else now_monotonic_us
            serving = device.serving(pipeline)
            mark = None if serving is None else taken.mark if taken.holds(serving) else serving.key
            yield Said(device=name, serving=mark, at_monotonic_us=at)


def members(connection: Connection, pipeline: str, *, asked: Needs, now: int) -> list[Member]:
    """The fleet as the planner sees it, with the rate of requests of the last minutes, and what could not run what is `asked`."""
    fleet = Fleet()
    lacking = functools.lru_cache(maxsize=MACHINES_MAX)(functools.partial(fitting.lacking, asked))
    fleet.refresh(connection)
    rates = _rates(connection, pipeline, now)
    return [
        Member(
            device=one.device,
            labels=one.labels,
            online=fleet.online(one, now),
            rate_per_s=rates.get(one.device),
            unfit=lacking(one.spoken.machine) if one.spoken is not None else "",
        )
        for one in fleet.devices.values()
    ]


def _rates(connection: Connection, pipeline: str, now: int) -> dict[str, float]:
    table = schema.windows
    rows = connection.execute(
        select(
            table.c.device,
            func.sum(table.c.requests).label("requests"),
            func.sum(table.c.closed_at - table.c.opened_at).label("duration_us"),
        )
        .where(
            table.c.pipeline == pipeline,
            table.c.received_at > now - RATE_WINDOW_US,
            table.c.requests > 0,  # what shadowed answered nothing, over time that another's window has already
        )
        .group_by(table.c.device)
    )
    return {row.device: row.requests * 1_000_000 / row.duration_us for row in rows if row.duration_us > 0}
