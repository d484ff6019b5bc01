"""The agent's loop: one thread, one queue. Whatever happens becomes an event of the core; its commands are carried out here.

The record is saved before anything else of a step is done; when the disk refuses for too long the agent ends rather than act
on what it could not remember. The gateway serves on meanwhile, and the restarted agent begins at the last saved record.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from holdfast_agent.core import departure, events, reporting
from holdfast_agent.core.commands import (
    CollectGarbage,
    Command,
    Save,
    Spool,
    StartFetch,
    StopFetch,
    Tell,
    VerifySlots,
    WakeAt,
)
from holdfast_agent.core.device import Device, Own
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import Record
from holdfast_agent.core.step import Step, resume, step
from holdfast_agent.edge.broker import BrokerEvent, Connected, Gone, Received, Sent, Unheard
from holdfast_agent.edge.fetching import FetchEnded
from holdfast_agent.edge.gateway_control import ControlEvent
from holdfast_agent.edge.local_control import Answer, RollbackRequested
from holdfast_agent.edge.polling import Polled
from holdfast_agent.edge.service import ServiceManager
from holdfast_gateway.control import AcknowledgeWindows, Tallied, ToGateway
from holdfast_shared import topics
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import Report

# What may wait for the loop, a millisecond each. Past this the disk is stuck, and tallies, which come again, are dropped.
WAITING_MAX: Final = 2048
EMIT_S: Final = 5.0
# Between two looks at a full queue, on the thread that has something to say: it may wait, and must not spin.
STUCK_LOOK_S: Final = 0.05
# A full disk may be emptied by its owner meanwhile. Longer, and the service manager restarts us.
SAVE_TRIES: Final = 15
SAVE_AGAIN_S: Final = 2.0

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants the agent to end."""


Happening = BrokerEvent | Polled | FetchEnded | ControlEvent | RollbackRequested | events.SlotsVerified | Stop


class RecordStore(Protocol):
    """`save` returns when the record survives a power cut; raises OSError, and then nothing has changed."""

    def save(self, saved: Record) -> None: ...


class DataPlane(Protocol):
    """What is said to a gateway that is away is lost."""

    def say(self, message: ToGateway) -> None: ...


class Fetcher(Protocol):
    """At most one fetch: `start` ends the one before. `stop` may be repeated."""

    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str,
        *,
        urgent: bool = False,
        from_disk: bool = False,
    ) -> None: ...

    def stop(self) -> None: ...


class Outbox(Protocol):
    """`put` returns when the report is on disk. All but the notices raise OSError."""

    def put(self, report: Report) -> None: ...

    def sent(self, number: int) -> None: ...

    def connected(self) -> None: ...

    def unheard(self, number: int) -> None: ...

    def gone(self) -> None: ...


class Disk(Protocol):
    """The releases on this device."""

    def release_of(self, digest: str) -> Release | None: ...

    def collect_garbage(self, keep: Collection[str]) -> None: ...

    def verify(self, releases: Collection[str]) -> None:
        """Begin to read all their bytes beside everything else; `SlotsVerified` follows. May be repeated."""


class Inbox:
    """What other threads put in. Their `emit` hardly ever waits, and never for long."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Happening] = queue.SimpleQueue()  # reentrant: a signal's handler may put

    def emit(self, happening: Happening) -> None:
        deadline = time.monotonic() + EMIT_S
        while self._waiting.qsize() >= WAITING_MAX:
            dropped = isinstance(happening, events.GatewaySaid) and isinstance(happening.message, Tallied)
            if dropped or time.monotonic() > deadline:
                log.error("the loop is stuck: a %s is dropped", type(happening).__name__)
                return
            time.sleep(STUCK_LOOK_S)
        self._waiting.put(happening)

    def stop(self) -> None:
        self._waiting.put(Stop())

    def take(self, timeout_s: float) -> Happening | None:
        try:
            return self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Loop:
    """`run` returns after `Stop`; it raises OSError when the record cannot be saved."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        records: RecordStore,
        data_plane: DataPlane,
        fetcher: Fetcher,
        outbox: Outbox,
        disk: Disk,
        clock: Callable[[], Moment],
        fleet: str,
    ) -> None:
        self._inbox, self._records, self._data_plane = inbox, records, data_plane
        self._fetcher, self._outbox, self._disk = fetcher, outbox, disk
        self._clock, self._fleet = clock, fleet
        self._service = ServiceManager()
        self._broker_connected = False
        self._wake_us = 0
        self._device: Device | None = None

    def run(self, own: Own, record: Record) -> None:
        releases = {
            slot.release.digest: found
            for pipeline in record.pipelines.values()
            for slot in (pipeline.current, pipeline.previous, pipeline.candidate)
            if slot is not None and (found := self._disk.release_of(slot.release.digest)) is not None
        }
        self._carry_out(resume(own, record, releases, self._clock()))
        self._service.ready()
        beat_s = self._service.beat_s
        while True:
            self._say_how_it_is()
            wait_s = max(0.0, (self._wake_us - self._clock().monotonic_us) / 1_000_000)
            happening = self._inbox.take(wait_s if beat_s is None else min(wait_s, beat_s))
            if isinstance(happening, Stop):
                self._service.stopping()
                return
            event = self._event_of(happening)
            if event is not None:
                self._step(event)

    def _say_how_it_is(self) -> None:
        """To the service manager, at every turn: what is stuck in a turn says nothing."""
        assert self._device is not None
        self._service.alive(self._clock().monotonic_us / 1_000_000)
        broker = "broker connected" if self._broker_connected else "without the broker"
        self._service.status(f"{reporting.in_one_line(self._device)}; {broker}")

    def _step(self, event: events.Event) -> None:
        assert self._device is not None
        self._carry_out(step(self._device, event, self._clock()))

    def _event_of(self, happening: Happening | None) -> events.Event | None:
        """The core's event, or None for what is the outbox's business, or nobody's."""
        match happening:
            case None:
                return events.Tick()
            case events.GatewayConnected() | events.GatewayGone() | events.GatewaySaid() | events.SlotsVerified():
                return happening
            case Received(topic, payload):
                return self._document(topic, payload)
            case Polled(scope_kind, name, pipeline, envelope):
                return events.DocumentReceived(scope=f"{scope_kind}/{name}", pipeline=pipeline, envelope=envelope)
            case FetchEnded():
                return self._fetched(happening)
            case RollbackRequested():
                self._roll_back(happening)
                return None
            case Connected() | Gone() | Sent() | Unheard():
                self._outbox_hears(happening)
                return None
            case Stop():
                return None
            case _ as impossible:
                assert_never(impossible)

    def _document(self, topic: str, payload: bytes) -> events.Event | None:
        about = topics.parse(self._fleet, topic)
        if about is None or about.kind != "assignment":
            log.warning("a message on %s, which is no assignment's topic", topic[:200])
            return None
        return events.DocumentReceived(
            scope=f"{about.scope}/{about.subject}", pipeline=about.pipeline, envelope=payload
        )

    def _fetched(self, ended: FetchEnded) -> events.Event | None:
        assert self._device is not None
        if self._device.fetch is None:
            return None
        pipeline, target = self._device.fetch
        if (target.release.digest, target.environment) != (ended.target, ended.environment):
            return None  # of a fetch that was stopped
        if not ended.ok:
            log.warning("fetching %s %s failed: %s %s", pipeline, target.release.version, ended.code, ended.detail)
        return events.FetchEnded(
            pipeline=pipeline,
            target=target,
            ok=ended.ok,
            draw=random.random(),  # noqa: S311 - spreads retries; nobody gains by guessing it
            code=ended.code,
            detail=ended.detail,
            release=self._disk.release_of(ended.target) if ended.ok else None,
            retry_after_s=ended.retry_after_s,
        )

    def _roll_back(self, asked: RollbackRequested) -> None:
        """Answered when it is saved and the gateway is told, or refused with nothing done."""
        assert self._device is not None
        wanted = asked.request
        refused = departure.no_rollback(self._device, wanted.pipeline, wanted.target)
        if refused:
            asked.answer(Answer(refused=refused))
            return
        log.warning("somebody on this device rolls %s back: %s", wanted.pipeline, wanted.reason or "no reason given")
        self._step(events.RollbackAsked(pipeline=wanted.pipeline, target=wanted.target, detail=wanted.reason))
        serving = self._device.record.pipeline(wanted.pipeline).serving
        asked.answer(Answer(serves=serving.release.version if serving is not None else ""))

    def _outbox_hears(self, happening: Connected | Gone | Sent | Unheard) -> None:
        try:
            match happening:
                case Connected():
                    log.info("connected to the broker")
                    self._broker_connected = True
                    self._outbox.connected()
                case Gone(reason):
                    log.warning("without the broker: %s", reason)
                    self._broker_connected = False
                    self._outbox.gone()
                case Sent(token):
                    self._outbox.sent(token)
                case Unheard(token):
                    self._outbox.unheard(token)
        except OSError as error:
            log.warning("the spool: %s", error)  # what is not forgotten is sent again, which harms nobody

    def _carry_out(self, taken: Step) -> None:
        """The step's commands in their order. Reporting that fails changes nothing about what serves."""
        lost: list[int] = []
        for command in taken.commands:
            self._do(command, lost)
        self._device = taken.device
        for number in lost:
            self._carry_out(step(self._device, events.SpoolFailed(number), self._clock()))

    def _do(self, command: Command, lost: list[int]) -> None:
        match command:
            case Save(record):
                self._save(record)
            case Tell(message):
                self._data_plane.say(message)
            case StartFetch(pipeline=pipeline, target=target, urgent=urgent, from_disk=from_disk):
                log.info("fetching %s %s", pipeline, target.release.version)
                wanted = (target.release.digest, target.release.version, pipeline, target.environment)
                self._fetcher.start(*wanted, urgent=urgent, from_disk=from_disk)
            case StopFetch():
                self._fetcher.stop()
            case CollectGarbage(keep):
                self._collect(keep)
            case VerifySlots(releases):
                self._disk.verify(releases)
            case Spool(report=report, windows=windows):
                self._put(report, windows, lost)
            case WakeAt(monotonic_us):
                self._wake_us = monotonic_us
            case _ as impossible:
                assert_never(impossible)

    def _save(self, record: Record) -> None:
        for attempt in range(1, SAVE_TRIES + 1):
            try:
                self._records.save(record)
                return
            except OSError as error:
                log.warning("cannot save the record (try %d of %d): %s", attempt, SAVE_TRIES, error)
                if attempt == SAVE_TRIES:
                    raise
                time.sleep(SAVE_AGAIN_S)  # nothing else may happen before the record is durable

    def _collect(self, keep: Collection[str]) -> None:
        try:
            self._disk.collect_garbage(keep)
        except OSError as error:
            log.warning("cannot delete what is not needed: %s", error)

    def _put(self, report: Report, windows: tuple[int, ...], lost: list[int]) -> None:
        for event in report.events:
            version = event.release.version if event.release is not None else ""
            log.info("%s", " ".join(filter(None, (event.kind, event.pipeline, version, event.code, event.detail))))
        try:
            self._outbox.put(report)
        except OSError as error:
            log.warning("report %d is lost: %s", report.number, error)
            lost.append(report.number)
            return
        if windows:
            self._data_plane.say(AcknowledgeWindows(windows=windows))
