"""A download by the shipped agent over a slow network: stopped when nobody wants it any more, and gone on with where it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psutil
import pytest

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.report import PipelineReport
from support import installed_release
from support.device_bench import DeviceBench
from support.device_surroundings import PIPELINE
from support.fault_proxy import FaultProxy, running_fault_proxy
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
HEAVY_BYTES: Final = 4_000_000
# Ten seconds for all of it: time enough to change one's mind.
SLOW: Final = 400_000
# What is not on disk yet when a fetch is killed, what is under way in sockets, and manifests.
LOST_MAX: Final = 1_400_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[tuple[DeviceBench, FaultProxy]]:
    """An agent without a gateway; its server is behind the slow network."""
    with running_mosquitto() as broker, contextlib.ExitStack() as ending:
        device = DeviceBench(tmp_path, broker)
        ending.callback(device.close)
        proxy = ending.enter_context(running_fault_proxy(device.files.url))
        device.path.write_text(device.path.read_text().replace(device.files.url, proxy.url))
        device.start_agent()
        yield device, proxy


def release(version: str, size_bytes: int = HEAVY_BYTES) -> Published:
    """Its weights are no model: it only moves, and no gateway runs that could load it."""
    weights = random.Random(version).randbytes(size_bytes)
    return installed_release.publish(PIPELINE, version, weights, golden=b'{"cases": []}', tolerance=0.1)


def under_way(device: DeviceBench, proxy: FaultProxy, published: Published) -> None:
    """Assigned, and a part of it on disk."""
    device.publish(published)
    proxy.set(bytes_per_s=SLOW)
    device.assign(Rule(mode="serve", release=published.ref))
    partial = device.state.partial_blob(published.weights)
    device.eventually(lambda: partial.exists() and partial.stat().st_size >= 1_000_000, "a part of it is on disk")


def fetches(device: DeviceBench) -> list[psutil.Process]:
    """Its fetch processes that are alive; one that has ended meanwhile is none."""
    found = []
    for child in psutil.Process(device.processes["agent"].pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "holdfast_agent.fetch" in child.cmdline():
                found.append(child)
    return found


def test_a_halted_download_stops_and_goes_on_where_it_was_once_it_is_wanted_again(
    bench: tuple[DeviceBench, FaultProxy],
) -> None:
    """A `keep` rule takes its place, as when a rollout is paused: the process ends and no byte comes any more."""
    device, proxy = bench
    published = release("1.0.0")
    under_way(device, proxy, published)
    device.assign(Rule(mode="keep", release=published.ref))
    device.eventually(lambda: not fetches(device), "the fetch is stopped")
    device.eventually(lambda: device.saved().state == "idle", "it is idle")
    passed = proxy.passed
    assert passed < HEAVY_BYTES, "mid-way"
    proxy.set()
    device.assign(Rule(mode="serve", release=published.ref))
    device.eventually(lambda: device.state.manifest(published.digest).exists(), "it is all there")
    assert device.state.blob(published.weights).stat().st_size == HEAVY_BYTES
    assert proxy.passed - passed < HEAVY_BYTES - 1_000_000 + 50_000, "what had come was not fetched again"
    assert proxy.passed < HEAVY_BYTES + LOST_MAX


def test_a_superseded_download_gives_way_to_the_new_target(bench: tuple[DeviceBench, FaultProxy]) -> None:
    device, proxy = bench
    published = release("1.0.0")
    newer = release("1.1.0", 50_000)
    device.publish(newer)
    under_way(device, proxy, published)
    device.assign(Rule(mode="serve", release=newer.ref))
    device.eventually(lambda: device.state.manifest(newer.digest).exists(), "the new one is all there")
    assert not device.state.manifest(published.digest).exists()
    assert proxy.passed < HEAVY_BYTES


def test_a_killed_fetch_is_told_and_the_next_goes_on_from_there(bench: tuple[DeviceBench, FaultProxy]) -> None:
    device, proxy = bench
    published = release("1.0.0")
    under_way(device, proxy, published)
    for child in fetches(device):
        child.kill()
    (told,) = device.eventually(lambda: device.events("fetch_failed") or None, "the loss is told")
    assert told.code == "fetch-damaged"
    proxy.set()
    device.eventually(lambda: device.state.manifest(published.digest).exists(), "it is all there")
    assert proxy.passed < HEAVY_BYTES + LOST_MAX


def test_outside_its_window_nothing_is_downloaded_and_the_device_says_why(
    bench: tuple[DeviceBench, FaultProxy],
) -> None:
    """By its own configuration and its own clock; without the window, the same document is followed."""
    device, _ = bench
    device.terminate("agent")
    plain = device.path.read_text()
    later = [(datetime.now(UTC) + timedelta(hours=hours)).strftime("%H:%M") for hours in (6, 12)]
    fields = f'[fetch]\nwindows = [{{ from = "{later[0]}", to = "{later[1]}" }}]\n'
    device.path.write_text(plain.replace("[device]", '[device]\ntime_zone = "UTC"') + fields)
    published = release("1.0.0", 50_000)
    device.publish(published)
    device.start_agent()
    device.assign(Rule(mode="serve", release=published.ref))
    waits = f"the download window {later[0]}-{later[1]}"
    device.eventually(lambda: waits in [one.waiting_for for one in newest(device)], "it says what it waits for")
    assert not device.state.partial.exists(), "nothing was begun"
    device.terminate("agent")
    device.path.write_text(plain)
    device.start_agent()
    device.eventually(lambda: device.state.manifest(published.digest).exists(), "it is all there")


def test_on_a_metered_network_a_download_stops_at_the_days_bytes_and_goes_on_elsewhere(
    bench: tuple[DeviceBench, FaultProxy], tmp_path: Path
) -> None:
    """A hook's file says that it costs; then that it no longer does. Nothing failed, and nothing came twice."""
    device, proxy = bench
    device.terminate("agent")
    told = tmp_path / "metered"
    told.write_text("yes\n")
    device.path.write_text(
        device.path.read_text() + f'[network]\nmetered = "{told}"\nmetered_bytes_per_day = 1000000\n'
    )
    published = release("1.0.0")
    device.publish(published)
    device.start_agent()
    device.assign(Rule(mode="serve", release=published.ref))
    device.eventually(
        lambda: any("for today are used up" in one.waiting_for for one in newest(device)), "it says what it waits for"
    )
    assert proxy.passed < 1_000_000 + 500_000, "the budget, polls, and what was on its way"
    kept = device.state.partial_blob(published.weights).stat().st_size
    assert kept > 800_000
    assert device.events("fetch_failed") == []
    told.write_text("no\n")
    device.terminate("agent")
    device.start_agent()
    passed = proxy.passed
    device.eventually(lambda: device.state.manifest(published.digest).exists(), "it is all there")
    assert proxy.passed - passed < HEAVY_BYTES - kept + 100_000


def newest(device: DeviceBench) -> Sequence[PipelineReport]:
    found = max(device.reports, key=lambda one: one.number, default=None)
    return found.pipelines if found is not None else ()
