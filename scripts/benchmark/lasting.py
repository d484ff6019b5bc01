"""What agent, gateway and worker hold after a day's health windows and a hundred thousand requests: as much as before.

Health is told every tenth of a second instead of every minute: so a day's windows pass in minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from benchmark import questions
from benchmark.clients import Connection
from benchmark.footprint import PSS_MB, pss_mb
from benchmark.table import Row
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from holdfast_shared.wire.report import Window
from support import digits_models, installed_release
from support.device_bench import PIPELINE, DeviceBench, running_device
from support.mosquitto import running_mosquitto

HEALTH_S: Final = 0.1
# What is made at first use: connections, buffers, SQLite's pages, code that had not run.
WARM: Final = 30
WARM_REQUESTS: Final = 2_000
# A leak of a hundred bytes a request, or of seven kilobytes a window, is ten megabytes at the full size.
GROWTH_MB: Final = 2.0

Told = Callable[[str], None]


class Lasted(NamedTuple):
    """Megabytes of PSS. `counted` is what the device's signed reports say of the requests."""

    before: tuple[float, ...]  # of agent, gateway, worker
    after: tuple[float, ...]
    windows: int
    counted: int

    @property
    def growth_mb(self) -> float:
        return sum(self.after) - sum(self.before)


def memory(folder: Path, windows: int, requests: int, told: Told) -> Iterator[Row]:
    """A whole device of real processes."""
    told(f"{windows} windows with {requests} requests, {HEALTH_S:g} s each at least")
    found = lasted(folder, windows, requests)
    agent, gateway, worker = (
        f"{after:.1f} after {before:.1f}" for before, after in zip(found.before, found.after, strict=True)
    )
    yield Row(
        what=f"agent and gateway, memory after {found.windows:,} windows and {found.counted:,} requests",
        ours=f"{sum(found.after[:2]):.1f} MB PSS (agent {agent}, gateway {gateway})",
        peer=f"limit: {PSS_MB:g} MB",
        ratio=sum(found.after[:2]) / PSS_MB,
        target=1.0,
    )
    yield Row(
        what="the same, and the worker: growth meanwhile",
        ours=f"{found.growth_mb:+.1f} MB (worker {worker})",
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
        begun, before = _told(device), _memory(device)
        _live(device, windows, requests)
        told, after = _told(device), _memory(device)
    return Lasted(
        before, after, len(told) - len(begun), sum(one.requests for number, one in told.items() if number not in begun)
    )


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
            device.eventually(lambda count=window: len(_told(device)) > len(begun) + count, "the window's report")  # type: ignore[misc]
    device.eventually(lambda: sum(one.requests for one in _told(device).values()) >= asked, "every request in a report")


def _told(device: DeviceBench) -> dict[int, Window]:
    """By their numbers: a window may be told again."""
    return {one.window: one for report in device.reports for one in report.windows}


def _memory(device: DeviceBench) -> tuple[float, ...]:
    agent, gateway = (device.processes[name].pid for name in ("agent", "gateway"))
    workers = [one.pid for one in psutil.Process(gateway).children()]
    return pss_mb(agent), pss_mb(gateway), pss_mb(*workers)
