"""The whole of it: pipelines as the record or the agent wants them, applications in front, and what the agent is told.

The record is read once, at start. From then on only an agent's `Routes` change what serves; without an agent everything
stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from holdfast_agent.core import record
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.edge.locks import LEFT_BEHIND_S, lock_within
from holdfast_agent.edge.service import ServiceManager
from holdfast_gateway import confinement, fingerprints
from holdfast_gateway.agent_link import AgentLink
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import (
    AcknowledgeWindows,
    CloseWindows,
    RetryLoad,
    Route,
    Routes,
    Status,
    Switched,
    Tallied,
    ToGateway,
    Windows,
)
from holdfast_gateway.http_service import HttpService
from holdfast_gateway.metrics import Metrics
from holdfast_gateway.open_inference import OpenInference
from holdfast_gateway.pipeline import Pipeline
from holdfast_gateway.slot import Slot
from holdfast_gateway.windows import Ledger
from holdfast_shared import durable
from holdfast_shared.assign import Target
from holdfast_shared.errors import Conflict, Damaged, Malformed
from holdfast_shared.wire.report import Isolation

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
# A failure is told at once; a storm of them so often.
TALLY_EVERY_S: Final = 0.02
# SIGTERM: answers that are under way, then workers.
STOP_ANSWERS_S: Final = 10.0
STOP_WORKERS_S: Final = 8.0
STOP_LOOK_EVERY_S: Final = 0.02
# A service manager that waits for us is told to go on after so long, whatever still loads: half of the unit's start timeout.
READY_WAIT_S: Final = 60.0
# More pipelines than any device has memory for.
PIPELINES_MAX: Final = 64


class Gateway:
    """`run` is its life; `stop` ends it."""

    def __init__(self, configuration: Configuration, worker_command: Sequence[str]) -> None:
        self._folder = configuration.folder
        self._name = secrets.token_hex(8)
        self._confinement = confinement.of(configuration.gateway)
        self._bench = Bench(
            self._folder,
            worker_command,
            self._confinement,
            configuration.gateway.standby,
            configuration.device.accelerators,
            configuration.device.delegates,
        )
        self._ledger = Ledger()
        self._pipelines: dict[str, Pipeline] = {}
        self._leaving: list[Pipeline] = []
        self._serial = self._serial_wanted = 0
        self._link = AgentLink(self)
        metrics = Metrics(self._pipelines, self._ledger)
        self._inference = OpenInference(self._pipelines, self.isolation, metrics)
        self._http = HttpService(configuration.gateway, self._inference)
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._status_due = False
        self._untold: dict[str, Switched] = {}
        self._tallies_due: dict[Slot, None] = {}
        self._tallied_at = 0.0
        self._tally_timer: asyncio.TimerHandle | None = None
        self._told: dict[tuple[str, str], int] = {}
        self._to_remove = [self._folder.gateway_addresses, self._folder.control_socket]
        self._service = ServiceManager()
        self._listening_since: float | None = None
        self._said_ready = False

    async def run(self) -> None:
        """Serve until `stop`. Raises Conflict when another gateway runs here, OSError when it cannot listen."""
        durable.make_folder(self._folder.run, mode=0o750)
        held = os.open(self._folder.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await self._take(held)
            await self._run()
        finally:
            os.close(held)

    async def _take(self, run_folder: int) -> None:
        """Be the only gateway there. Not by asking at the sockets: one that runs would take who asks for its agent."""
        due = self._loop.time() + LEFT_BEHIND_S
        while not (lock_within(run_folder, 0.0) or self._stopped.is_set()):
            if self._loop.time() > due:
                raise Conflict(f"a gateway is running already in {self._folder.run}", next_step="stop it first")
            await asyncio.sleep(STOP_LOOK_EVERY_S)

    async def _run(self) -> None:
        if self._stopped.is_set():
            return
        await self._link.listen(self._folder.control_socket)
        try:
            durable.remove(self._folder.gateway_addresses)
            addresses = await self._http.listen(self._folder.gateway_socket)
            if addresses.ours:
                self._to_remove.append(addresses.unix)
            for route in self._recorded():
                self._pipeline(route.pipeline).resume(route)
            said = {"http": addresses.http, "unix": str(addresses.unix), "pid": os.getpid()}
            durable.write_file(self._folder.gateway_addresses, msgspec.json.encode(said))
            log.info("serving at %s and %s", addresses.http, addresses.unix)
            self._listening_since = self._loop.time()
            self._say_how_it_is()
            ticking = self._loop.create_task(self._tick())
            await self._stopped.wait()
            ticking.cancel()
        finally:
            await self._end()

    def stop(self) -> None:
        """Have `run` answer what is under way, and return."""
        self._stopped.set()

    def _recorded(self) -> list[Route]:
        """What the record says should serve. A damaged one serves nothing until an agent says what should."""
        try:
            found = durable.DoubledFile(self._folder.record, on_damage=lambda what: log.warning("%s", what)).read()
            pipelines = record.decode(found[1]).pipelines if found is not None else {}
        except (Damaged, Malformed) as error:
            self._inference.unassigned = (
                f"nothing is served until the agent says what should: the record is damaged: {error}"
            )
            log.error("%s", self._inference.unassigned)  # noqa: TRY400 - no trace: the bytes are wrong, not the code
            return []
        return [
            Route(pipeline=name, serving=one.serving, refuge=one.refuge, requests=one.shared, shadow=one.shadow)
            for name, one in pipelines.items()
        ]

    # -- what the agent says

    def agent_connected(self) -> None:
        self._say_status()
        if self._ledger.closed:
            self._link.say(Windows(windows=self._ledger.closed))
        for switched in self._untold.values():
            self._link.say(switched)
        self._untold.clear()
        self._told.clear()
        self._tally_what_changed()

    def agent_said(self, message: ToGateway) -> None:
        match message:
            case Routes():
                self._route(message)
            case RetryLoad(target=key):
                for pipeline in self._pipelines.values():
                    pipeline.retry_load(key)
            case CloseWindows():
                self._ledger.close(wall_us=_wall_us())
                self._link.say(Windows(windows=self._ledger.closed))
            case AcknowledgeWindows(windows=numbers):
                self._ledger.acknowledge(numbers)

    def _route(self, routes: Routes) -> None:
        if len(routes.routes) > PIPELINES_MAX:
            log.error("the agent names %d pipelines; at most %d are served", len(routes.routes), PIPELINES_MAX)
        wanted = {route.pipeline: route for route in routes.routes[:PIPELINES_MAX]}
        self._inference.unassigned = ""
        self._serial_wanted = routes.serial
        for name in [name for name in self._pipelines if name not in wanted]:
            pipeline = self._pipelines.pop(name)
            self._leaving.append(pipeline)
            pipeline.retire()
        for name, route in wanted.items():
            self._pipeline(name).route(route)
        self.status_changed()

    def _pipeline(self, name: str) -> Pipeline:
        if name not in self._pipelines:
            self._pipelines[name] = Pipeline(name, self, self._ledger, self._bench)
        return self._pipelines[name]

    # -- what pipelines tell

    def status_changed(self) -> None:
        """Said soon, and once for all that changes in one turn of the loop."""
        if not self._status_due:
            self._status_due = True
            self._loop.call_soon(self._say_status)

    def failure_counted(self, slot: Slot) -> None:
        self._tallies_due[slot] = None
        if self._tally_timer is None:
            wait_s = max(0.0, self._tallied_at + TALLY_EVERY_S - self._loop.time())
            self._tally_timer = self._loop.call_later(wait_s, self._say_tallies)

    def switched(self, pipeline: str, target: Target, at_s: float) -> None:
        said = Switched(pipeline=pipeline, target=target, at_monotonic_us=int(at_s * 1_000_000))
        if not self._link.say(said):
            self._untold[pipeline] = said

    # -- what is said to the agent

    def _say_status(self) -> None:
        self._status_due = False
        self._say_how_it_is()
        if all(pipeline.in_force for pipeline in self._pipelines.values()):
            self._serial = self._serial_wanted
        slots = [slot for pipeline in self._pipelines.values() for slot in pipeline.slots.values()]
        serving = [pipeline.usable[0] for pipeline in self._pipelines.values() if pipeline.usable]
        self._link.say(
            Status(
                serial=self._serial,
                slots=tuple(slot.status() for slot in slots),
                gateway=self._name,
                runtime=fingerprints.together(_measured(serving) or _measured(slots)),  # what answers counts
                isolation=self.isolation(),
                shadows=tuple(
                    one.beside.shadow.status() for one in self._pipelines.values() if one.beside.shadow is not None
                ),
            )
        )

    def isolation(self) -> Isolation:
        """What is true of every worker that has told so far."""
        slots = [slot for pipeline in self._pipelines.values() for slot in pipeline.slots.values()]
        said = [slot.ready_said.isolation for slot in slots if slot.ready_said is not None]
        return confinement.together(self._confinement.told, said)

    def _say_tallies(self) -> None:
        self._tally_timer = None
        self._tallied_at = self._loop.time()
        due, self._tallies_due = self._tallies_due, {}
        for slot in due:
            self._tally(slot)

    def _tally_what_changed(self) -> None:
        for pipeline in self._pipelines.values():
            for slot in pipeline.slots.values():
                if _counted(slot) != self._told.get((slot.name, slot.target.key), 0):
                    self._tally(slot)

    def _tally(self, slot: Slot) -> None:
        self._told[slot.name, slot.target.key] = _counted(slot)
        if not self._link.connected:
            return
        window, first_bad = slot.counts.slid(self._loop.time(), wall_us=_wall_us())
        tallied = Tallied(pipeline=slot.name, target=slot.target, window=window, first_bad_monotonic_us=first_bad)
        self._link.say(tallied)

    def _say_how_it_is(self) -> None:
        """Tell the service manager how it is: ready once it listens and every pipeline answers, or it is clear that it cannot.

        One that cannot is no reason to be killed at a start deadline: the others serve, and it answers 503 with the reason.
        """
        if self._listening_since is None:
            return
        answers = {name: pipeline.usable[0].version for name, pipeline in self._pipelines.items() if pipeline.usable}
        waited_s = self._loop.time() - self._listening_since
        if not self._said_ready and (all(one.settled for one in self._pipelines.values()) or waited_s > READY_WAIT_S):
            self._said_ready = True
            self._service.ready()
        serving = ", ".join(f"{name} {version}" for name, version in sorted(answers.items())) or "nothing"
        silent = ", ".join(sorted(self._pipelines.keys() - answers.keys()))
        self._service.status(f"serving {serving}" + (f"; no answer from {silent}" if silent else ""))

    # -- time, and the end

    async def _tick(self) -> None:
        while True:
            self._service.alive(self._loop.time())
            await asyncio.sleep(min(TICK_S, self._service.beat_s or TICK_S))
            if not self._said_ready:  # afterwards it is said when something changes
                self._say_how_it_is()
            for pipeline in self._pipelines.values():
                pipeline.tick()
            self._leaving = [pipeline for pipeline in self._leaving if not pipeline.empty]
            self._http.sweep(self._loop.time())
            self._tally_what_changed()
            named = {(one.name, key) for one in (*self._pipelines.values(), *self._leaving) for key in one.keys}
            self._ledger.forget_all_but(named)
            self._told = {key: count for key, count in self._told.items() if key in named}

    async def _end(self) -> None:
        """Answers first, then workers; each has its deadline, and nothing is left running."""
        self._service.stopping()
        self._http.stop()
        for pipeline in self._pipelines.values():
            pipeline.turn_away_who_waits()
        await self._until(lambda: not self._http.busy, STOP_ANSWERS_S)
        pipelines = [*self._pipelines.values(), *self._leaving]
        for pipeline in pipelines:
            pipeline.retire()
        self._link.stop()
        await self._until(lambda: all(pipeline.empty for pipeline in pipelines), STOP_WORKERS_S)
        for pipeline in pipelines:
            pipeline.kill()
        await self._until(lambda: all(worker.gone for worker in self._bench.workers), STOP_WORKERS_S)
        self._http.sweep(float("inf"))
        for path in self._to_remove:
            durable.remove(path)
        await asyncio.sleep(STOP_LOOK_EVERY_S)  # transports close in the loop's next turns

    async def _until(self, done: Callable[[], bool], deadline_s: float) -> None:
        due = self._loop.time() + deadline_s
        while not done() and self._loop.time() < due:  # at the end only; an event for each would be noise
            self._service.alive(self._loop.time())
            await asyncio.sleep(STOP_LOOK_EVERY_S)


def _counted(slot: Slot) -> int:
    """Something that grows with whatever an agent should hear of."""
    totals = slot.counts.totals
    return totals.requests + totals.input_faults + totals.labelled


def _wall_us() -> int:
    return time.time_ns() // 1000


def _measured(slots: Sequence[Slot]) -> list[dict[str, str]]:
    """What each loaded worker measured, and the environment that it runs in."""
    return [
        {**slot.ready_said.fingerprint, "environment": slot.target.environment}
        for slot in slots
        if slot.ready_said is not None
    ]
