"""What stands for gateway and workers in a light device: the release's real ONNX bytes, run in this process on sampled images.

It says what a gateway says (`holdfast_gateway.control`), from what it measured and nothing else. A null or an error is answered
once more by the refuge, and counted as the shipped gateway counts it. Sessions are shared: one for each digest.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from demonstration.digits import Images
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
    Switched,
    Tallied,
    ToGateway,
    Windows,
)
from holdfast_shared import histogram
from holdfast_shared.assign import Target
from holdfast_shared.histogram import Tally
from holdfast_shared.wire.report import Window
from holdfast_worker import release_runner
from holdfast_worker.failures import LoadRefused, ModelRaised
from holdfast_worker.protocol import Outcome
from holdfast_worker.release_runner import Runner

WINDOW_S: Final = 20.0


class Loaded(NamedTuple):
    """How loading ended: a runner, or a stable failure code."""

    runner: Runner | None
    code: str
    detail: str


class Runners:
    """Every release's session, loaded and self-tested once, whoever asks first."""

    def __init__(self, manifests: Path, blobs: Path) -> None:
        self._manifests, self._blobs = manifests, blobs
        self._loaded: dict[str, Loaded] = {}

    def of(self, target: Target) -> Loaded:
        digest = target.release.digest
        if digest not in self._loaded:
            try:
                runner = release_runner.load(self._manifests, self._blobs, digest)
                self._loaded[digest] = Loaded(runner, "", "")
            except LoadRefused as error:
                self._loaded[digest] = Loaded(None, error.code, str(error))
        return self._loaded[digest]


class _Counts:
    """Of one slot since its window was opened."""

    def __init__(self, pipeline: str, target: Target) -> None:
        self.pipeline, self.target = pipeline, target
        self.opened_at = time.time_ns() // 1000
        self.requests = self.errors = self.nulls = self.failed_over = self.input_faults = 0
        self.latency = Tally()
        self.first_bad_us: int | None = None

    def window(self, number: int) -> Window:
        return Window(
            window=number,
            pipeline=self.pipeline,
            release=self.target.release,
            environment=self.target.environment,
            opened_at=self.opened_at,
            closed_at=time.time_ns() // 1000,
            requests=self.requests,
            errors=self.errors,
            nulls=self.nulls,
            input_faults=self.input_faults,
            failed_over=self.failed_over,
            latency=self.latency.freeze(),
        )


class LightPlane:
    """One device's. `tell` what the agent says, `ask` what applications would; both return what a gateway would say."""

    def __init__(self, runners: Runners, images: Images, *, seed: int) -> None:
        self._runners, self._images = runners, images
        self._drawn = np.random.default_rng(seed)
        self._name = secrets.token_hex(8)
        self._routes: dict[str, Route] = {}
        self._serial = 0
        self._open: dict[tuple[str, str], _Counts] = {}
        self._closed: dict[int, Window] = {}
        self._number = 0
        self._recent: dict[tuple[str, str], deque[tuple[float, Window, int | None]]] = {}
        self._awaited: dict[str, Target] = {}  # began to serve, and has not answered yet

    def status(self) -> Status:
        slots = {}
        for route in self._routes.values():
            for target in (route.serving, route.refuge, route.testing):
                if target is not None:
                    loaded = self._runners.of(target)
                    state: SlotState = "ready" if loaded.runner is not None else "failed"
                    slots[route.pipeline, target.key] = SlotStatus(
                        pipeline=route.pipeline,
                        target=target,
                        state=state,
                        code=loaded.code,
                        detail=loaded.detail,
                        loads=1,
                    )
        return Status(
            serial=self._serial, slots=tuple(slots.values()), gateway=self._name, runtime={"light": "in-process"}
        )

    def tell(self, message: ToGateway) -> Iterator[FromGateway]:
        match message:
            case Routes(serial=serial, routes=routes):
                for route in routes:
                    before = self._routes.get(route.pipeline)
                    if route.serving is not None and (before is None or before.serving != route.serving):
                        self._awaited[route.pipeline] = route.serving
                        self._recent.pop((route.pipeline, route.serving.key), None)
                self._routes = {route.pipeline: route for route in routes}
                self._serial = serial
                yield self.status()
            case CloseWindows():
                self._close()
                yield Windows(windows=tuple(self._closed.values()))
            case AcknowledgeWindows(windows=numbers):
                for number in numbers:
                    self._closed.pop(number, None)
            case RetryLoad():
                yield self.status()

    def ask(self, count: int) -> Iterator[FromGateway]:
        """So many requests of every pipeline that serves."""
        for route in self._routes.values():
            if route.serving is None or self._runners.of(route.serving).runner is None:
                continue
            for _ in range(count):
                answered = self._request(route.pipeline, route.serving, route.refuge)
                if answered and self._awaited.get(route.pipeline) == route.serving:
                    del self._awaited[route.pipeline]
                    yield Switched(pipeline=route.pipeline, target=route.serving, at_monotonic_us=_monotonic_us())
            yield self._tallied(route.pipeline, route.serving)

    def _request(self, pipeline: str, serving: Target, refuge: Target | None) -> bool:
        """One request; whether the serving slot answered it well."""
        row = int(self._drawn.integers(len(self._images.labels)))
        inputs = {"image": self._images.pixels[row : row + 1]}
        counts, outcome, latency_ms = self._attempt(pipeline, serving, inputs)
        if outcome is Outcome.OK:
            self._count(counts, outcome, latency_ms)
            return True
        if refuge is not None and self._runners.of(refuge).runner is not None:
            other, second, second_ms = self._attempt(pipeline, refuge, inputs)
            if second is not Outcome.OK:  # it fails in both slots: it is the request
                counts.input_faults += 1
                return False
            self._count(other, second, second_ms)
            counts.failed_over += 1
        self._count(counts, outcome, latency_ms)
        return False

    def _attempt(
        self, pipeline: str, target: Target, inputs: Mapping[str, np.ndarray]
    ) -> tuple[_Counts, Outcome, float]:
        runner = self._runners.of(target).runner
        assert runner is not None
        began = time.perf_counter()
        try:
            _, outcome = runner.run(inputs)
        except ModelRaised:
            outcome = Outcome.ERROR
        latency_ms = (time.perf_counter() - began) * 1000
        counts = self._open.setdefault((pipeline, target.key), _Counts(pipeline, target))
        return counts, outcome, latency_ms

    def _count(self, counts: _Counts, outcome: Outcome, latency_ms: float) -> None:
        counts.requests += 1
        counts.nulls += outcome is Outcome.NULL
        counts.errors += outcome is Outcome.ERROR
        counts.latency.add(latency_ms)
        if outcome is not Outcome.OK and counts.first_bad_us is None:
            counts.first_bad_us = _monotonic_us()

    def _tallied(self, pipeline: str, target: Target) -> Tallied:
        """Counts of the last WINDOW_S: those of closed windows in it, and of the open one."""
        now = time.monotonic()
        recent = self._recent.setdefault((pipeline, target.key), deque())
        while recent and now - recent[0][0] > WINDOW_S:
            recent.popleft()
        counts = self._open.setdefault((pipeline, target.key), _Counts(pipeline, target))
        parts = [window for _, window, _ in recent] + [counts.window(0)]
        first_bad = [bad for _, _, bad in recent if bad is not None]
        if counts.first_bad_us is not None:
            first_bad.append(counts.first_bad_us)
        merged = msgspec.structs.replace(
            parts[-1],
            opened_at=parts[0].opened_at,
            requests=sum(part.requests for part in parts),
            errors=sum(part.errors for part in parts),
            nulls=sum(part.nulls for part in parts),
            input_faults=sum(part.input_faults for part in parts),
            failed_over=sum(part.failed_over for part in parts),
            latency=histogram.merged(part.latency for part in parts),
        )
        return Tallied(
            pipeline=pipeline, target=target, window=merged, first_bad_monotonic_us=min(first_bad, default=None)
        )

    def _close(self) -> None:
        for key, counts in list(self._open.items()):
            if counts.requests or counts.input_faults:
                self._number += 1
                window = counts.window(self._number)
                self._closed[self._number] = window
                self._recent.setdefault(key, deque()).append((time.monotonic(), window, counts.first_bad_us))
            del self._open[key]


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
