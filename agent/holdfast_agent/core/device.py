"""A device as one frozen value: what it is, what its record says, and what it knows only while the agent runs.

Nothing in here decides; `Device` has the few lookups and replacements that every decision needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from holdfast_agent.core.commands import Command
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_gateway.control import Routes, SlotStatus
from holdfast_shared.assign import Target
from holdfast_shared.authorities import Authorities
from holdfast_shared.drift import UNWATCHED, Watch
from holdfast_shared.identifiers import KeyId
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire.assignment import Assignment, TimeSpan
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import Event, EventKind, Isolation, MachineFacts, Window

SECOND_US: Final = 1_000_000
# Bits rot in months; a day of reading 8 MiB/s is nothing to a disk.
VERIFY_S: Final = 86_400.0
DETAIL_LENGTH_MAX: Final = 500  # of an event: one line for a person
# Pipelines a small device could serve at all; more documents than that are somebody's mistake.
PIPELINES_MAX: Final = 16

Purpose = Literal["serve", "standby", "stage", "repair", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What the device is provisioned with, and this boot. `health_us` is the time between two health reports.

    `verify_us` is the time between two verifications of all slots; `verify_draw`, from [0, 1), is the first one's share of it.
    `download`: when it may download by its own configuration; that and all windows by the clock in `zone`. `machine`: what it
    tells of its hardware and runtimes.
    """

    membership: Membership
    directors: Mapping[KeyId, tuple[int, PublicKey]]  # the epoch each may direct in, and the key
    boot: str
    agent_version: str
    health_us: int
    verify_us: int
    verify_draw: float
    zone: tzinfo = UTC
    download: tuple[TimeSpan, ...] = ()
    machine: MachineFacts | UnsetType = UNSET

    @classmethod
    def of(
        cls,
        membership: Membership,
        authorities: Authorities,
        *,
        boot: str,
        agent_version: str,
        health_s: float,
        verify_s: float = VERIFY_S,
        verify_draw: float = 1.0,
        zone: tzinfo = UTC,
        download: tuple[TimeSpan, ...] = (),
        machine: MachineFacts | UnsetType = UNSET,
    ) -> Own:
        epochs = {holder.epoch for holder in authorities.directors}
        return cls(
            membership=membership,
            directors={
                key_id: (epoch, key)
                for epoch in sorted(epochs)
                for key_id, key in authorities.director_keys(epoch).items()
            },
            boot=boot,
            agent_version=agent_version,
            health_us=int(health_s * SECOND_US),
            verify_us=int(verify_s * SECOND_US),
            verify_draw=verify_draw,
            zone=zone,
            download=download,
            machine=machine,
        )

    @property
    def scopes(self) -> tuple[str, str]:
        """The scopes whose documents are for this device."""
        return (f"region/{self.membership.region}", f"device/{self.membership.device}")


@dataclass(frozen=True, slots=True)
class Goal:
    """What a pipeline fetches a target for: to `serve` it, as `standby` in `previous`, to `stage` it, to `repair` a slot, or to
    have it `shadow` what serves."""

    purpose: Purpose
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A release that was left; told as an event of this kind once the gateway confirms what serves instead."""

    kind: EventKind
    target: Target
    code: str
    detail: str
    began_monotonic_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What is known of one pipeline only while the agent runs. Times are CLOCK_MONOTONIC µs.

    `due_us` is the state's deadline; while it is not counted, `left_us` is what is left of it. `mended_by_us` is the deadline of
    a fetch beside a trial, which has a deadline of its own. `retry_us` is when the target
    that should serve may be tried again, `repair_us` by slot when it may be mended again.
    `counted` are requests of the trial's release in closed windows, `tallied` those in its newest tally.
    `watch` is what its closed windows say of drift.
    `begins_us`: the device's own moment within the spread of the rule that `begins_for` names.
    `held_us`: until when the network's budget, told in `held_for`, lets nothing come: no failure, and no longer each time.
    `perhaps_here`: targets, by key, that may be on the disk, so that no window keeps the device from looking; `from_disk`: the
    fetch under way only looks.
    `told` are things that are said once while they last, such as that the device stays where it is.
    """

    goal: Goal | None = None
    due_us: int | None = None
    left_us: int | None = None
    mended_by_us: int | None = None
    retry_us: int | None = None
    repair_us: Mapping[str, int] = field(default_factory=dict)
    held_us: int | None = None
    held_for: str = ""
    perhaps_here: frozenset[str] = frozenset()
    from_disk: bool = False
    reload_us: int | None = None
    begins_us: int | None = None
    begins_for: str = ""
    confirmed: Target | None = None
    confirmed_us: int | None = None
    leaving: Leaving | None = None
    activated: Target | None = None
    counted: int = 0
    tallied: int = 0
    first_bad_us: int | None = None
    staged: frozenset[str] = frozenset()
    waiting_for: str = ""
    told: frozenset[str] = frozenset()
    watch: Watch = UNWATCHED
    watched: str = ""  # the target that `watch` is about


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What the gateway was told and what it last said. `heard` is False from a connect to its first Status."""

    connected: bool = False
    heard: bool = False
    serial: int = 0
    said: tuple[Routes, ...] = ()
    slots: Mapping[tuple[str, str], SlotStatus] = field(default_factory=dict)  # by pipeline and target key
    shadows: Mapping[tuple[str, str], SlotStatus] = field(default_factory=dict)
    runtime: Mapping[str, str] = field(default_factory=dict)
    isolation: Isolation | None = None

    def slot(self, pipeline: str, target: Target | None) -> SlotStatus | None:
        return self.slots.get((pipeline, target.key)) if target is not None else None

    def asked_for(self, pipeline: str, goal: Goal) -> SlotStatus | None:
        """What is said of the worker that the goal is to have: a shadow's is one of its own."""
        return (self.shadows if goal.purpose == "shadow" else self.slots).get((pipeline, goal.target.key))

    def failed(self, pipeline: str, target: Target | None) -> bool:
        status = self.slot(pipeline, target)
        return status is not None and status.state == "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """When the slots' bytes are next to be read; `until_us` is set while somebody reads them.

    `unreadable` are releases that could not be read the last time: neither whole nor damaged, as far as anybody knows.
    """

    due_us: int = 0
    until_us: int | None = None
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What is to be reported. `windows` by reported number; `reported` are spooled, and the gateway may still send them."""

    number: int = 0
    health_due_us: int = 0
    closing_until_us: int | None = None
    refused_until_us: Mapping[str, int] = field(default_factory=dict)  # by code
    urgent: bool = False
    events: tuple[Event, ...] = ()
    windows: Mapping[int, Window] = field(default_factory=dict)
    reported: Mapping[int, frozenset[int]] = field(default_factory=dict)  # report number → its windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """All of it. `documents` are the parsed ones by pipeline; `releases` the manifests of slots and goals, by digest."""

    own: Own
    record: Record
    documents: Mapping[str, tuple[Assignment, ...]] = field(default_factory=dict)
    releases: Mapping[str, Release] = field(default_factory=dict)
    live: Mapping[str, Live] = field(default_factory=dict)
    gateway: GatewayView = field(default_factory=GatewayView)
    fetch: tuple[str, Target] | None = None
    garbage: bool = False
    desk: Desk = field(default_factory=Desk)
    verification: Verification = field(default_factory=Verification)
    outgoing: tuple[Command, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every pipeline that is recorded or assigned."""
        return sorted(self.record.pipelines.keys() | self.documents.keys())

    def live_of(self, pipeline: str) -> Live:
        return self.live.get(pipeline) or Live()

    def documents_of(self, pipeline: str) -> tuple[Assignment, ...]:
        return self.documents.get(pipeline, ())

    def release_of(self, target: Target | None) -> Release | None:
        return self.releases.get(target.release.digest) if target is not None else None

    def with_pipeline(self, name: str, pipeline: PipelineRecord) -> Device:
        if self.record.pipelines.get(name) == pipeline:
            return self
        record = msgspec.structs.replace(self.record, pipelines={**self.record.pipelines, name: pipeline})
        return replace(self, record=record)

    def with_live(self, name: str, live: Live) -> Device:
        return replace(self, live={**self.live, name: live})

    def doing(self, *commands: Command) -> Device:
        return replace(self, outgoing=(*self.outgoing, *commands))

    def telling(
        self,
        kind: EventKind,
        now: Moment,
        *,
        pipeline: str = "",
        target: Target | None = None,
        code: str = "",
        detail: str = "",
        began_monotonic_us: int | None = None,
        at_monotonic_us: int | None = None,
        urgent: bool = True,
    ) -> Device:
        """With one more event to report: at once, or, if not urgent, with whatever is reported next."""
        event = Event(
            kind=kind,
            at=max(now.at, 0),
            at_monotonic_us=now.monotonic_us if at_monotonic_us is None else at_monotonic_us,
            boot=self.own.boot,
            pipeline=pipeline,
            release=target.release if target is not None else None,
            environment=target.environment if target is not None else "",
            code=code,
            detail=detail[:DETAIL_LENGTH_MAX],
            began_monotonic_us=began_monotonic_us,
        )
        desk = replace(self.desk, events=(*self.desk.events, event), urgent=self.desk.urgent or urgent)
        return replace(self, desk=desk)
