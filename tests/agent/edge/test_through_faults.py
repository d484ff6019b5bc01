"""The real fetch process against the real server, through a network that fails in every way: a stable code, or a verified
download; nothing harmed either way, and what came is gone on from.
"""

from __future__ import annotations

import json
import queue
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from holdfast_agent.edge import blobs, configuration
from holdfast_agent.edge.fetching import FetchEnded, FetchProcess
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch.outcome import EXIT_STATUS
from holdfast_server.registry.transfers import TransferBuilder
from support.fault_proxy import FaultProxy, running_fault_proxy
from support.running_server import FLEET, Running, database_url, release_folder, running_server, server_context

pytestmark = pytest.mark.slow
WITHIN_S: Final = 60.0
# As random as weights are, so it travels as it is; the other of few values, so it is shorter compressed.
RANDOM: Final = random.Random(1).randbytes(800_000)
FEW_VALUES: Final = bytes(random.Random(2).choices((0, 1, 2, 3), k=800_000))
DEADLINE_S: Final = 3.0


class Way(NamedTuple):
    """A device, the network and the server, which has two heavy releases."""

    device: Path
    proxy: FaultProxy
    server: Running
    folder: StateFolder

    def digest(self, version: str = "1.0.0") -> str:
        found: Any = self.server.client.get(f"releases/iris/{version}").json
        return str(found["digest"])

    def fetch(
        self, version: str = "1.0.0", *, deadline_s: float = WITHIN_S, urgent: bool = False, **faults: Any
    ) -> FetchEnded:
        """One fetch under these faults, in its own process; afterwards what is named on the disk is all there."""
        self.proxy.set(**faults)
        ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
        fetch = FetchProcess(self.device, ended.put, deadline_s=deadline_s)
        fetch.start(self.digest(version), version, "iris", urgent=urgent)
        found = ended.get(timeout=WITHIN_S)
        fetch.stop()
        assert found.code in EXIT_STATUS
        there = self.folder.manifest(self.digest(version)).exists()
        assert there == found.ok, "a manifest on disk means that it is all there"
        assert not there or blobs.damaged(self.folder, self.digest(version)) == []
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With both releases published, and what can be compressed compressed."""
    folder = tmp_path_factory.mktemp("server")
    with (
        database_url("sqlite", folder, None) as url,
        server_context(url, folder) as context,
        running_server(context, folder) as running,
    ):
        for version, ballast in (("1.0.0", RANDOM), ("1.1.0", FEW_VALUES)):
            made = release_folder(folder, version=version, name=version, ballast=ballast)
            running.client.holdfast("publish", made, key="mira")
        assert TransferBuilder(context.database, context.registry.blobs).build_missing() > 0
        yield running


@pytest.fixture
def way(server: Running, tmp_path: Path) -> Iterator[Way]:
    with running_fault_proxy(server.client.address) as proxy:
        device = _configured(tmp_path, proxy.url, server.folder / "authorities.json")
        yield Way(device, proxy, server, configuration.load(device).folder)


def _configured(folder: Path, server: str, authorities: Path) -> Path:
    path = folder / "agent.toml"
    device = {"id": "camera-7", "fleet": FLEET, "state": str(folder / "state"), "key": "/none", "membership": "/none"}
    device["authorities"] = str(authorities)
    lines = ["[device]", *(f"{name} = {json.dumps(value)}" for name, value in device.items())]
    path.write_text("\n".join([*lines, "[server]", f'url = "{server}"', "[broker]", 'url = "mqtt://127.0.0.1:1"']))
    return path


@pytest.mark.parametrize(
    "faults",
    [
        {"latency_s": 0.03},
        {"bytes_per_s": 1_000_000},
        {"cut_after": 400_000},
        {"reset_after": 400_000},
    ],
    ids=["late", "slow", "cut", "reset"],
)
def test_what_only_disturbs_is_got_over_within_the_fetch(way: Way, faults: dict[str, Any]) -> None:
    found = way.fetch(**faults)
    assert (found.ok, found.detail) == (True, "")
    assert way.proxy.passed < len(RANDOM) + 100_000, "what came is not fetched again"


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"refuse": True}, "fetch-unreachable"),
        ({"half_open": True}, "fetch-too-slow"),
        ({"stall_after": 400_000}, "fetch-too-slow"),
        ({"bytes_per_s": 50_000}, "fetch-too-slow"),
        ({"corrupt_at": 400_000}, "fetch-damaged"),
    ],
    ids=["refused", "accepts and never answers", "stops reading and sending", "too slow", "corrupts"],
)
def test_what_stops_a_fetch_has_its_code_and_the_next_one_ends_well(
    way: Way, faults: dict[str, Any], code: str
) -> None:
    found = way.fetch(deadline_s=DEADLINE_S if code == "fetch-too-slow" else WITHIN_S, **faults)
    assert (found.ok, found.code) == (False, code)
    assert "Traceback" not in found.detail
    kept = sum(file.stat().st_size for file in way.folder.partial.iterdir()) if way.folder.partial.exists() else 0
    before = way.proxy.passed
    assert way.fetch().ok
    again = way.proxy.passed - before
    assert again < len(RANDOM) - kept + 80_000, "it went on where the bytes ended"


@pytest.mark.parametrize("at", [9, 150, 900, 2_500])
def test_a_flipped_bit_anywhere_is_never_believed(way: Way, at: int) -> None:
    """In a status line, a header, a signature, a manifest: whatever it becomes, it is got over or named by a code."""
    found = way.fetch(corrupt_at=at, deadline_s=20.0)
    assert found.ok or found.code in ("fetch-damaged", "fetch-refused", "fetch-unreachable", "fetch-untrusted")
    assert way.fetch().ok


def test_a_compressed_blob_comes_in_fewer_bytes_and_goes_on_where_it_was_cut(way: Way) -> None:
    """Measured on the wire, all fetches together."""
    assert way.fetch("1.1.0", deadline_s=DEADLINE_S, stall_after=100_000).code == "fetch-too-slow"
    assert way.fetch("1.1.0", reset_after=50_000).ok
    assert way.proxy.passed < len(FEW_VALUES) * 0.5


def test_a_compressed_blob_that_is_corrupted_on_its_way_comes_as_it_is(way: Way) -> None:
    assert way.fetch("1.1.0", corrupt_at=100_000).ok
    assert way.proxy.passed > len(FEW_VALUES)


def test_the_process_keeps_to_the_cap_that_its_device_is_configured_with(way: Way) -> None:
    """All of it in one second would be no cap."""
    way.device.write_text(way.device.read_text() + "\n[fetch]\nbytes_per_s_max = 400000\n")
    began = time.monotonic()
    assert way.fetch().ok
    assert time.monotonic() - began > len(RANDOM) / 400_000 - 0.6


def test_the_process_passes_a_used_up_budget_only_when_it_is_urgent_and_may(way: Way) -> None:
    budget = '\n[network]\nmetered = "yes"\nmetered_bytes_per_day = 100000\n'
    plain = way.device.read_text()
    way.device.write_text(plain + budget)
    assert way.fetch().code == way.fetch(urgent=True).code == "over-budget"
    way.device.write_text(plain + budget + "urgent_may_exceed = true\n")
    assert way.fetch().code == "over-budget"
    assert way.fetch(urgent=True).ok
