"""A gateway that speaks the control messages in simulated time: it loads, fails, switches and counts as each release conducts
itself, and forgets all but the record when it is restarted."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord
from holdfast_gateway.control import (
    AcknowledgeWindows,
    CloseWindows,
    FromGateway,
    RetryLoad,
    Route,
    Routes,
    SlotState,
    SlotStatus,
    Status,
    Tallied,
    ToGateway,
    Windows,
)
from holdfast_shared.assign import Target
from holdfast_shared.wire.report import Window
from support.playbook import (
    PIPELINE,
    counts,
)


class World(Protocol):
    """What the gateway needs of the world around it."""

    now: Moment

    @property
    def saved_pipeline(self) -> PipelineRecord: ...

    def conduct(self, one: Target) -> str:
        """How that release behaves on this device."""

    @property
    def rotten(self) -> set[str]:
        """Releases whose bytes on the disk are not what they were: a worker that is to load them says so."""

    def check_served(self, served: Target) -> None:
        """It serves from now on: whether it may."""


class SimulatedGateway:
    """A data plane of one pipeline: loads, self-tests, serves what it was told once that is ready, counts."""

    def __init__(self, world: World, boot: int) -> None:
        self._world, self.name = world, f"gateway-{boot}"
        self.serial, self._told = 0, Routes(serial=0, routes=())
        self.serving: Target | None = None
        self.workers: dict[str, tuple[Target, SlotState, str]] = {}
        self.shadow: tuple[Target, SlotState, str] | None = None
        self._windows: dict[int, Window] = {}
        self._number = 0
        self.sent: deque[FromGateway] = deque()
        saved = world.saved_pipeline
        if saved.serving is not None:  # a boot without the agent
            route = Route(pipeline=PIPELINE, serving=saved.serving, shadow=saved.shadow)
            self.take(Routes(serial=0, routes=(route,)))

    def hear(self, message: ToGateway) -> None:
        match message:
            case Routes():
                self.take(message)
            case RetryLoad(target=key):
                if key in self.workers:
                    self.workers[key] = (self.workers[key][0], "loading", "")
            case CloseWindows():
                if self.serving is not None:
                    name = self.serving.release.version.split(".")[1]
                    self._number += 1
                    self._windows[self._number] = counts(name, requests=3, window=self._number, at=self._world.now.at)
                self.sent.append(Windows(windows=tuple(self._windows.values())))
            case AcknowledgeWindows(windows=numbers):
                for number in numbers:
                    self._windows.pop(number, None)

    def take(self, routes: Routes) -> None:
        self._told = routes
        named = [
            one for route in routes.routes for one in (route.serving, route.refuge, route.testing) if one is not None
        ]
        keep = {one.key for one in named} | ({self.serving.key} if self.serving is not None else set())
        self.workers = {key: one for key, one in self.workers.items() if key in keep}
        for one in named:
            self.workers.setdefault(one.key, (one, "loading", ""))
        wanted = next((route.shadow for route in routes.routes), None)
        if wanted is None or self.shadow is None or self.shadow[0] != wanted:
            self.shadow = (wanted, "loading", "") if wanted is not None else None
        self._switch()
        self.sent.append(self.status())

    def work(self) -> None:
        """Every worker that loads is done loading; what serves answers some requests."""
        for key, (one, state, _) in list(self.workers.items()):
            if state == "loading":
                self.workers[key] = self._loaded(one, asked=one == self.serving)
        if self.shadow is not None and self.shadow[1] == "loading":
            self.shadow = self._loaded(self.shadow[0], asked=True)
        self._switch()
        self.sent.append(self.status())

    def _loaded(self, one: Target, *, asked: bool) -> tuple[Target, SlotState, str]:
        conduct = self._world.conduct(one)
        failed = conduct == "self-test-failed" or (conduct == "crash-loop" and asked)
        if one.digests & self._world.rotten:
            conduct, failed = "damaged-blob", True
        return (one, "failed" if failed else "ready", conduct if failed else "")

    def answer(self) -> None:
        """Requests, as they are counted for what serves."""
        if self.serving is None:
            return
        conduct, name = self._world.conduct(self.serving), self.serving.release.version.split(".")[1]
        if conduct == "crash-loop":
            self.workers[self.serving.key] = (self.serving, "failed", "crash-loop")
            self.sent.append(self.status())
            return
        nulls = 30 if conduct == "null-output" else 0
        now_us = self._world.now.monotonic_us
        window = msgspec.structs.replace(counts(name, requests=60, nulls=nulls), environment=self.serving.environment)
        self.sent.append(
            Tallied(
                pipeline=PIPELINE, target=self.serving, window=window, first_bad_monotonic_us=now_us if nulls else None
            )
        )

    def status(self) -> Status:
        slots = tuple(
            SlotStatus(pipeline=PIPELINE, target=one, state=state, code=code)
            for one, state, code in self.workers.values()
        )
        shadows = tuple(
            SlotStatus(pipeline=PIPELINE, target=one, state=state, code=code)
            for one, state, code in ((self.shadow,) if self.shadow is not None else ())
        )
        return Status(serial=self.serial, slots=slots, gateway=self.name, shadows=shadows)

    def _switch(self) -> None:
        wanted = next((route.serving for route in self._told.routes if route.pipeline == PIPELINE), None)
        if wanted is None or self.workers[wanted.key][1] == "ready":
            self.serving, self.serial = wanted, self._told.serial
            if wanted is not None:
                self._world.check_served(wanted)
