"""Light devices: the shipped agent's core, three hundred times in one process, against the same broker and server.

Each has its own key, membership, record on disk and MQTT session; `step` decides, and here its commands are carried out. What
they share is what a machine would otherwise hold three hundred times: one thread of sockets, one store of verified blobs, one
session for each release.
"""

from __future__ import annotations

import heapq
import queue
import random
import secrets
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from demonstration import digits
from demonstration.light_plane import LightPlane, Runners
from holdfast_agent.core import record
from holdfast_agent.core.commands import Command, Save, Spool, StartFetch, Tell, WakeAt
from holdfast_agent.core.device import Device, Own
from holdfast_agent.core.events import (
    DocumentReceived,
    Event,
    FetchEnded,
    GatewayConnected,
    GatewaySaid,
    Moment,
    Tick,
)
from holdfast_agent.core.step import Step, first_record, resume, step
from holdfast_agent.edge.blobs import release_of
from holdfast_agent.edge.broker import BrokerEvent, BrokerSession, Connected, Gone, Received, Sent, Unheard
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.network import Network
from holdfast_agent.fetch import staging
from holdfast_agent.fetch.manifests import Order, Source
from holdfast_agent.fetch.outcome import Outcome, of_error
from holdfast_agent.fetch.patience import Deadline
from holdfast_gateway.control import AcknowledgeWindows
from holdfast_shared import __version__, authorities, durable, signing, strict_json, topics
from holdfast_shared.assign import Target
from holdfast_shared.authorities import Authorities
from holdfast_shared.durable import DoubledFile
from holdfast_shared.errors import HoldfastError
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.membership import ENVELOPE_BYTES_MAX, Membership
from holdfast_shared.wire.membership import TYPE as MEMBERSHIP_TYPE
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import TYPE as REPORT_TYPE
from holdfast_worker import installed

# Slower than a real device: those notice first, so that their own fallback is seen and not only the halt's.
REQUESTS_A_SECOND: Final = 6
ASK_EVERY_S: Final = 1.0
# Reports of one device that the broker has not acknowledged; the oldest health would go first on a real device's disk.
UNSENT_MAX: Final = 200
KEEPALIVE_S: Final = 30
FETCH_S: Final = 60.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Happened(NamedTuple):
    """Something for one device, from another thread."""

    device: int
    event: BrokerEvent | FetchEnded


class LightDevice:
    """One device: its core value, and what carries out its commands. Everything on the main thread."""

    def __init__(
        self, index: int, own: Own, key: PrivateKey, state: Path, plane: LightPlane, process: LightProcess
    ) -> None:
        self._index, self._own, self._key = index, own, key
        self._plane, self._process = plane, process
        self._store = DoubledFile(StateFolder(state).record)
        durable.make_folder(state)
        self._unsent: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._unheard: list[int] = []  # nobody listened: they go again with the next report
        self._connected = False
        self.session: BrokerSession | None = None
        self._device: Device

    def start(self, session: BrokerSession) -> None:
        found = self._store.read()
        stored = record.decode(found[1]) if found is not None else first_record(secrets.token_hex(8))
        self.session = session
        self._carry_out(resume(self._own, stored, {}, _now()))
        self.happened(GatewayConnected())
        for message in [self._plane.status()]:
            self.happened(GatewaySaid(message))

    def happened(self, event: Event) -> None:
        self._carry_out(step(self._device, event, _now()))

    def heard(self, event: BrokerEvent) -> None:
        match event:
            case Connected():
                self._connected = True
                for number in list(self._unsent):
                    self._publish(number)
            case Gone():
                self._connected = False
            case Sent(token):
                self._unsent.pop(token, None)
            case Unheard(token):
                self._unheard.append(token)
            case Received(topic, payload):
                parsed = topics.parse(self._own.membership.fleet, topic)
                if parsed is not None and parsed.kind == "assignment":
                    scope = f"{parsed.scope}/{parsed.subject}"
                    self.happened(DocumentReceived(scope=scope, pipeline=parsed.pipeline, envelope=payload))

    def ask(self, count: int) -> None:
        for message in self._plane.ask(count):
            self.happened(GatewaySaid(message))

    def _carry_out(self, stepped: Step) -> None:
        """`Save` is the first command of its step: nothing else is done before the record is durable."""
        self._device = stepped.device
        for command in stepped.commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case Save(saved):
                self._store.write(record.encode(saved))
            case Tell(message):
                for said in self._plane.tell(message):
                    self._process.soon(self._index, GatewaySaid(said))
            case StartFetch(pipeline=pipeline, target=target):
                self._process.fetch(self._index, pipeline, target)
            case Spool(report=report, windows=windows):
                signed = signing.sign(strict_json.encode(report), REPORT_TYPE, [self._key])
                self._unsent[report.number] = (report.kind, signed)
                while len(self._unsent) > UNSENT_MAX:
                    self._unsent.popitem(last=False)
                unheard, self._unheard = self._unheard, []
                for number in (*unheard, report.number):
                    self._publish(number)
                if windows:
                    self._acknowledge(windows)
            case WakeAt(monotonic_us):
                self._process.wake_at(self._index, monotonic_us)
            case _:  # StopFetch, CollectGarbage: downloads take no time here, and the store is shared
                pass

    def _acknowledge(self, windows: tuple[int, ...]) -> None:
        for _ in self._plane.tell(AcknowledgeWindows(windows=windows)):
            raise AssertionError("an acknowledgement is not answered")

    def _publish(self, number: int) -> None:
        found = self._unsent.get(number)
        if found is None or not self._connected or self.session is None:
            return
        kind, envelope = found
        member = self._own.membership
        topic = topics.health if kind == "health" else topics.event
        self.session.publish(topic(member.fleet, member.device), envelope, number)


class LightProcess:
    """All of them, one thread that decides, and one that fetches."""

    def __init__(self, folder: Path, server: str, broker: str, health_s: float) -> None:
        self._folder, self._server = folder, server
        self._shared = StateFolder(folder / "light-store")
        self._trusted = authorities.load(folder / "authorities.json")
        self._inbox: queue.SimpleQueue[Happened | None] = queue.SimpleQueue()
        self._soon: list[tuple[int, Event]] = []
        self._wakes: list[tuple[int, int]] = []
        self._due: dict[int, int] = {}
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._fetched: dict[str, Release] = {}
        self._network = Network("light-network")
        images = digits.load().live
        runners = Runners(self._shared.manifests, self._shared.blobs)
        boot = _BOOT.read_text(encoding="ascii").strip()
        self._devices: list[LightDevice] = []
        self._sessions: list[BrokerSession] = []
        for index, path in enumerate(sorted((folder / "memberships").glob("light-*.json"))):
            member = _membership(path, self._trusted)
            own = Own.of(member, self._trusted, boot=boot, agent_version=__version__, health_s=health_s)
            key = PrivateKey.from_pem((folder / "keys" / f"{member.device}.pem").read_bytes())
            plane = LightPlane(runners, images, seed=index)
            self._devices.append(LightDevice(index, own, key, folder / "devices" / member.device, plane, self))
            self._sessions.append(self._session(index, member, broker))

    def soon(self, index: int, event: Event) -> None:
        """After what is being done now."""
        self._soon.append((index, event))

    def wake_at(self, index: int, monotonic_us: int) -> None:
        self._due[index] = monotonic_us
        heapq.heappush(self._wakes, (monotonic_us, index))

    def fetch(self, index: int, pipeline: str, target: Target) -> None:
        self._fetching.submit(self._fetch, index, pipeline, target)

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        self._network.start()
        for device, session in zip(self._devices, self._sessions, strict=True):
            device.start(session)
            session.start()
        turns = self._turns()
        while not stop.is_set():
            self._settle()
            now = time.monotonic()
            at, index = next(turns)
            while (left := at - time.monotonic()) > 0 and not stop.is_set():
                self._wait(min(left, self._next_wake_s(now)))
                self._settle()
            self._devices[index].ask(max(1, int(REQUESTS_A_SECOND * ASK_EVERY_S)))
        for session in self._sessions:
            session.stop()
        self._network.stop()
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def _turns(self) -> Iterator[tuple[float, int]]:
        """When which device's applications ask: evenly spread over ASK_EVERY_S, and never to be caught up with."""
        at, gap = time.monotonic(), ASK_EVERY_S / len(self._devices)
        while True:  # as long as somebody asks
            for index in range(len(self._devices)):
                at = max(at + gap, time.monotonic() - ASK_EVERY_S)
                yield at, index

    def _settle(self) -> None:
        """Everything that waits: what devices caused, what came in, what is due."""
        while True:  # ends when nothing waits
            soon, self._soon = self._soon, []
            for index, event in soon:
                self._devices[index].happened(event)
            if self._soon:
                continue
            now_us = time.monotonic_ns() // 1000
            if self._wakes and self._wakes[0][0] <= now_us:
                at, index = heapq.heappop(self._wakes)
                if self._due.get(index) == at:
                    self._devices[index].happened(Tick())
                continue
            try:
                self._take(self._inbox.get_nowait())
            except queue.Empty:
                if not self._soon:
                    return

    def _wait(self, at_most_s: float) -> None:
        if at_most_s > 0:
            try:
                self._take(self._inbox.get(timeout=at_most_s))
            except queue.Empty:
                return

    def _take(self, happened: Happened | None) -> None:
        if happened is None:
            return
        device = self._devices[happened.device]
        if isinstance(happened.event, FetchEnded):
            device.happened(happened.event)
        else:
            device.heard(happened.event)

    def _next_wake_s(self, now: float) -> float:
        return self._wakes[0][0] / 1e6 - now if self._wakes else ASK_EVERY_S

    def _session(self, index: int, member: Membership, broker: str) -> BrokerSession:
        return BrokerSession(
            url=broker,
            fleet=member.fleet,
            device=member.device,
            region=member.region,
            keepalive_s=KEEPALIVE_S,
            emit=lambda event: self._inbox.put(Happened(index, event)),
            network=self._network,
        )

    def _fetch(self, index: int, pipeline: str, target: Target) -> None:
        """On the fetching thread: the shipped fetch into the shared store. What was fetched once is there for all."""
        digest = target.release.digest
        outcome = Outcome(ok=True)
        if digest not in self._fetched:
            order = Order(pipeline, target.release.version, digest)
            try:
                staging.stage(
                    Source(self._server, self._shared, self._trusted),
                    order,
                    Deadline(FETCH_S),
                    machine=installed.machine(),
                )
            except (HoldfastError, OSError) as error:
                outcome = of_error(error)
            else:
                found = release_of(self._shared, digest)
                assert found is not None, "a manifest is named last"
                self._fetched[digest] = found
        ended = FetchEnded(
            pipeline=pipeline,
            target=target,
            ok=outcome.ok,
            draw=random.random(),  # noqa: S311 - spreads retries
            code=outcome.code,
            detail=outcome.detail,
            release=self._fetched.get(digest),
        )
        self._inbox.put(Happened(index, ended))


def _membership(path: Path, trusted: Authorities) -> Membership:
    verified = signing.verify(
        path.read_bytes(), MEMBERSHIP_TYPE, trusted.enrolment_keys(), size_bytes_max=ENVELOPE_BYTES_MAX
    )
    return strict_json.decode(verified.payload, Membership, what=str(path), size_bytes_max=ENVELOPE_BYTES_MAX)


def _now() -> Moment:
    return Moment(at=time.time_ns() // 1000, monotonic_us=time.monotonic_ns() // 1000)


def main() -> None:
    """`python -m demonstration.light FOLDER SERVER BROKER HEALTH_S`: until SIGTERM."""
    folder, server, broker, health_s = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    LightProcess(Path(folder), server, broker, float(health_s)).run(stop)


if __name__ == "__main__":
    main()
