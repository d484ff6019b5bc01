"""What agent, gateway and worker hold after a day's health windows and a hundred thousand requests: as much as before.

Health is told every tenth of a second instead of every minute: so a day's windows pass in minutes. What grows is looked for in
anonymous memory, where a leak is: how much of a library's pages is whose depends on who else has it mapped at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from benchmark import questions
from benchmark.clients import Connection
from benchmark.footprint import PSS_MB, anonymous_mb, pss_mb
from benchmark.table import Row
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from holdfast_shared.wire.report import Window
from support import digits_models, installed_release
from support.device_bench import DeviceBench, running_device
from support.device_surroundings import PIPELINE
from support.mosquitto import running_mosquitto

HEALTH_S: Final = 0.1
# What is made at first use: connections, buffers, SQLite's pages, code that had not run.
WARM: Final = 30
WARM_REQUESTS: Final = 2_000
# A leak of a hundred bytes a request, or of seven kilobytes a window, is ten megabytes at the full size.
GROWTH_MB: Final = 2.0

Told = Callable[[str], None]


class Held(NamedTuple):
    """Megabytes."""

    agent: float
    gateway: float
    worker: float


class Lasted(NamedTuple):
    """`counted` is what the device's signed reports say of the requests."""

    pss: Held
    before: Held  # anonymous memory
    after: Held
    windows: int
    counted: int

    @property
    def growth_mb(self) -> float:
        return sum(self.after) - sum(self.before)


def memory(folder: Path, windows: int, requests: int, told: Told) -> Iterator[Row]:
    """A whole device of real processes."""
    told(f"{windows} windows with {requests} requests, {HEALTH_S:g} s each at least")
    found = lasted(folder, windows, requests)
    both = found.pss.agent + found.pss.gateway
    grown = ", ".join(
        f"{name} {after - before:+.1f}"
        for name, before, after in zip(Held._fields, found.before, found.after, strict=True)
    )
    yield Row(
        what=f"agent and gateway, memory after {found.windows:,} windows and {found.counted:,} requests",
        ours=f"{both:.1f} MB PSS (agent {found.pss.agent:.1f}, gateway {found.pss.gateway:.1f})",
        peer=f"limit: {PSS_MB:g} MB",
        ratio=both / PSS_MB,
        target=1.0,
    )
    yield Row(
        what="the same and the worker, anonymous memory: growth meanwhile",
        ours=f"{found.growth_mb:+.1f} MB ({grown})",
        peer=f"limit: {GROWTH_MB:g} MB",
        ratio=max(found.growth_mb, 0) / GROWTH_MB,
        target=1.0,
    )


def lasted(folder: Path, windows: int, requests: int) -> Lasted:
    """Ask in every window, and wait for the report that tells of it."""
    with running_mosquitto() as broker, running_device(folder, broker, health_s=HEALTH_S) as device:
        published = installed_release.publish(
            PIPELINE, "1.0.0", digits_models.trained(), trial=Trial(soak_s=0, requests_min=0)
        )
        device.publish(published)
        device.assign(Rule(mode="serve", release=published.ref))
        device.serves("1.0.0")
        _live(device, WARM, WARM_REQUESTS)
        begun, before = _told(device), _held(device, anonymous_mb)
        _live(device, windows, requests)
        told, after, pss = _told(device), _held(device, anonymous_mb), _held(device, pss_mb)
    fresh = [window for number, window in told.items() if number not in begun]
    return Lasted(pss, before, after, len(fresh), sum(one.requests for one in fresh))


def _live(device: DeviceBench, windows: int, requests: int) -> None:
    """Until each request is told of, and so many more windows are."""
    parts = urlsplit(device.address)
    message = questions.binary(f"/v2/models/{PIPELINE}/infer", "image", digits_models.images()[:1], "probabilities")
    begun = _told(device)
    asked = sum(one.requests for one in begun.values()) + requests
    with Connection((parts.hostname or "", parts.port or 0)) as connection:
        for window in range(windows):
            for _ in range(requests * (window + 1) // windows - requests * window // windows):
                connection.ask(message)
            device.eventually(lambda count=window: len(_told(device)) > len(begun) + count, "the window's report")  # type: ignore[misc]  # mypy infers no type for a default
    device.eventually(lambda: sum(one.requests for one in _told(device).values()) >= asked, "every request in a report")


def _told(device: DeviceBench) -> dict[int, Window]:
    """By their numbers: a window may be told again."""
    return {one.window: one for report in device.reports for one in report.windows}


def _held(device: DeviceBench, measure: Callable[[int], float]) -> Held:
    agent, gateway = (device.processes[name].pid for name in ("agent", "gateway"))
    (worker,) = (one.pid for one in psutil.Process(gateway).children() if "holdfast_worker" in " ".join(one.cmdline()))
    return Held(measure(agent), measure(gateway), measure(worker))
