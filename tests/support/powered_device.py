"""A device whose disk can be cut off: the shipped loop, record, fetch and garbage collection on one folder, in made-up time.

Its gateway is a stand-in of the shipped Protocol that verifies, as a worker does, the bytes of what it is told to load. The
server is a real one, asked by the shipped staging code in this process. Nothing waits: an idle device jumps to its next wake-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast_agent.core import events
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord, Record, State, decode
from holdfast_agent.edge import blobs
from holdfast_agent.edge.assembly import ReleasesOnDisk
from holdfast_agent.edge.broker import Received
from holdfast_agent.edge.fetching import FetchEnded
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.loop import Happening, Inbox, Loop, Stop
from holdfast_agent.edge.record_file import RecordFile
from holdfast_agent.fetch import outcome, staging
from holdfast_agent.fetch.manifests import Order, Source
from holdfast_agent.fetch.patience import Deadline
from holdfast_gateway.control import CloseWindows, Routes, SlotStatus, Status, Tallied, ToGateway, Windows
from holdfast_shared import durable, topics
from holdfast_shared.assign import Target
from holdfast_shared.errors import HoldfastError
from holdfast_shared.histogram import Histogram
from holdfast_shared.wire.assignment import Assignment
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import Report, Window
from holdfast_worker import installed
from support import playbook, published

PIPELINE: Final = "digits"
MACHINE: Final = installed.machine()
# An idle device that has not reached its goal after so many wake-ups never will.
WAKE_UPS_MAX: Final = 400
# Neither will one that may first have to wait out a whole backoff: a day of reports, a minute each, and a tally after each.
DAYS_WAKE_UPS_MAX: Final = 4_000
Goal = Callable[[PipelineRecord], bool]


@dataclass(frozen=True, slots=True)
class Phase:
    """What the director states, how releases behave on live traffic, and what must come of it."""

    document: Assignment | None
    until: Goal
    null_answers: frozenset[str] = frozenset()
    reports: int = 0


@dataclass(slots=True)
class Witness:
    """What was promised so far, for whoever looks at the disk afterwards.

    `saved`: the last record whose save returned. `perhaps`: what may be there instead: the one being saved, and one that a
    restarted agent found without having saved it. Nothing follows from that before its own first save.
    """

    saved: Record | None = None
    perhaps: tuple[Record, ...] = ()
    numbers: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, root: Path) -> Witness:
        """What is promised by what lies there."""
        found = durable.DoubledFile(StateFolder(root / "state").record).read()
        return cls(decode(found[1]) if found is not None else None)

    def copy(self) -> Witness:
        return Witness(self.saved, self.perhaps, set(self.numbers))


class PoweredDevice:
    """`run` starts the agent on the folder, and returns when each phase has come to its end. It may be run again."""

    def __init__(
        self, root: Path, server: str, witness: Witness | None = None, harmed: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = StateFolder(root / "state")
        self.witness = witness if witness is not None else Witness.of(root)
        self._source = Source(server, self.folder, published.authorities())
        self._harmed = harmed  # asked after each error of the disk
        self.now = playbook.BEGAN
        self.record = Record(incarnation="")  # what the agent goes by
        self._phases: deque[Phase] = deque()
        self._null_answers: frozenset[str] = frozenset()
        self._idle, self._idle_max = 0, WAKE_UPS_MAX
        self._serial = 0
        self._told = Routes(serial=0, routes=())

    def run(self, *phases: Phase, wake_ups_max: int = WAKE_UPS_MAX) -> None:
        self._phases, self._idle, self._idle_max = deque(phases), 0, wake_ups_max
        inbox = _SteppedInbox(self._next)
        with RecordFile(self.folder) as records:
            record = records.load()
            self.record = record
            self.witness.perhaps = (*self.witness.perhaps, record)
            loop = Loop(
                inbox=inbox,
                records=_Records(records, self),
                data_plane=_Gateway(self, inbox),
                fetcher=_Fetcher(self, inbox),
                outbox=_Outbox(self),
                disk=_Disk(self),
                clock=lambda: self.now,
                fleet="f",
            )
            self._begin(inbox)
            loop.run(playbook.own(), record)

    def _begin(self, inbox: Inbox) -> None:
        inbox.emit(events.GatewayConnected())
        inbox.emit(events.GatewaySaid(self.status()))
        self._state(inbox)

    def _state(self, inbox: Inbox) -> None:
        phase = self._phases[0]
        self._null_answers = phase.null_answers
        if phase.document is not None:
            topic = topics.region_assignment("f", "eu", PIPELINE)
            inbox.emit(Received(topic, playbook.signed(phase.document)))

    def _next(self, inbox: Inbox, wait_s: float) -> Happening | None:
        """Nothing is waiting: the next phase, counts of what serves, or a later time."""
        pipeline, phase = self.record.pipeline(PIPELINE), self._phases[0]
        if phase.until(pipeline) and len(self.witness.numbers) >= phase.reports:
            self._phases.popleft()
            if not self._phases:
                return Stop()
            self._state(inbox)
            return None
        self._idle += 1
        assert self._idle < self._idle_max, f"it never comes to its goal: {pipeline}"
        passed_us = int(wait_s * 1_000_000) + 1
        self.now = Moment(at=self.now.at + passed_us, monotonic_us=self.now.monotonic_us + passed_us)
        return self._tally(pipeline.serving) if self._idle % 2 else None

    def _tally(self, serving: Target | None) -> events.GatewaySaid | None:
        if serving is None or serving.key not in {one.target.key for one in self.status().slots}:
            return None
        nulls = 30 if serving.release.digest in self._null_answers else 0
        at = self.now.at
        window = Window(
            window=0,
            pipeline=PIPELINE,
            release=serving.release,
            environment=serving.environment,
            opened_at=at,
            closed_at=at,
            requests=60,
            errors=0,
            nulls=nulls,
            latency=Histogram(((10, 60),)),
        )
        return events.GatewaySaid(Tallied(pipeline=PIPELINE, target=serving, window=window))

    def status(self) -> Status:
        targets = {
            one.key: one
            for route in self._told.routes
            for one in (route.serving, route.refuge, route.testing)
            if one is not None
        }
        return Status(serial=self._serial, slots=tuple(map(self._loaded, targets.values())), gateway="gateway-1")

    def _loaded(self, target: Target) -> SlotStatus:
        if blobs.damaged(self.folder, target.release.digest):
            return SlotStatus(pipeline=PIPELINE, target=target, state="failed", code="damaged-blob")
        return SlotStatus(pipeline=PIPELINE, target=target, state="ready")

    def check_slots(self) -> None:
        """What a saved slot names is whole."""
        for digest in needed_slots(self.record.pipeline(PIPELINE)):
            assert blobs.damaged(self.folder, digest) == [], f"a slot names {digest}"

    def _say(self, message: ToGateway, inbox: Inbox) -> None:
        match message:
            case Routes():
                told = next((one.serving for one in message.routes), None)
                saved = self.witness.saved
                assert saved is not None
                assert told == saved.pipeline(PIPELINE).serving, "told before it was saved"
                self._told, self._serial = message, message.serial
                inbox.emit(events.GatewaySaid(self.status()))
            case CloseWindows():
                inbox.emit(events.GatewaySaid(Windows(windows=())))
            case _:
                inbox.emit(events.GatewaySaid(self.status()))


class _SteppedInbox(Inbox):
    def __init__(self, next_: Callable[[Inbox, float], Happening | None]) -> None:
        super().__init__()
        self._next = next_

    def take(self, timeout_s: float) -> Happening | None:
        found = super().take(0)
        return found if found is not None else self._next(self, timeout_s)


class _Records:
    def __init__(self, records: RecordFile, device: PoweredDevice) -> None:
        self._records, self._device = records, device

    def save(self, saved: Record) -> None:
        witness = self._device.witness
        witness.perhaps = (*witness.perhaps, saved)
        try:
            self._records.save(saved)
        except OSError:
            self._device._harmed()
            raise
        witness.saved, witness.perhaps = saved, ()
        self._device.record = saved


class _Gateway:
    def __init__(self, device: PoweredDevice, inbox: Inbox) -> None:
        self._device, self._inbox = device, inbox

    def say(self, message: ToGateway) -> None:
        self._device._say(message, self._inbox)


class _Fetcher:
    """What the fetch process does, in this one."""

    def __init__(self, device: PoweredDevice, inbox: Inbox) -> None:
        self._device, self._inbox = device, inbox

    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str,
        *,
        urgent: bool = False,  # noqa: ARG002 - Fetcher's signature
        from_disk: bool = False,
    ) -> None:
        order = Order(pipeline, version, target_digest, environment)
        ended = FetchEnded(target_digest, ok=True, code="", detail="", pipeline=pipeline)
        try:
            staging.stage(self._device._source._replace(from_disk=from_disk), order, Deadline(60), machine=MACHINE)
        except (HoldfastError, OSError) as error:
            said = outcome.of_error(error)
            ended = FetchEnded(target_digest, ok=False, code=said.code, detail=said.detail, pipeline=pipeline)
            self._device._harmed()
        self._inbox.emit(ended)

    def stop(self) -> None:
        pass


class _Outbox:
    """A spool that only counts: the real one is SQLite's business."""

    def __init__(self, device: PoweredDevice) -> None:
        self._witness = device.witness

    def put(self, report: Report) -> None:
        assert report.number not in self._witness.numbers, "a number is used once"
        self._witness.numbers.add(report.number)

    def sent(self, number: int) -> None: ...

    def connected(self) -> None: ...

    def unheard(self, number: int) -> None: ...

    def gone(self) -> None: ...


class _Disk:
    def __init__(self, device: PoweredDevice) -> None:
        self._shipped, self._device = ReleasesOnDisk(device.folder), device

    def release_of(self, digest: str) -> Release | None:
        return self._shipped.release_of(digest)

    def collect_garbage(self, keep: Collection[str]) -> None:
        try:
            self._shipped.collect_garbage(keep)
        except OSError:
            self._device._harmed()
            raise
        finally:
            self._device.check_slots()

    def verify(self, releases: Collection[str]) -> None:
        """Nobody reads again what is read at every load here."""


def needed_slots(pipeline: PipelineRecord) -> list[str]:
    """The digests of what must be whole on disk: all that may serve, and the candidate once it was fetched."""
    found = [pipeline.current, pipeline.previous]
    if pipeline.state in (State.STAGED, State.SELF_TESTING, State.TRIAL):
        found.append(pipeline.candidate)
    return [one.release.digest for one in found if one is not None]
