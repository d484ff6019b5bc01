from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge import loop
from holdfast_agent.fetch import blob
from holdfast_shared import durable
from support.hostile_server import HostileServer, running_hostile_server
from support.power_scenarios import PIECE_BYTES, SCENARIOS, serve_all
from support.powered_device import PoweredDevice, Witness
from support.recorded_disk import Image, Medium, RecordedDisk


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    """Honest, and with every release. Downloads come in small pieces, and nobody waits for a disk to get better."""
    monkeypatch.setattr(blob, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(loop, "SAVE_AGAIN_S", 0.0)
    monkeypatch.setattr(durable, "calls", durable.calls)  # put back whatever a test left there
    with running_hostile_server() as running:
        serve_all(running)
        yield running


@pytest.fixture
def before(server: HostileServer, tmp_path: Path) -> dict[str, Image]:
    """By scenario, the disk with which it begins: what those before it left."""
    found: dict[str, Image] = {}
    root = tmp_path / "before"
    root.mkdir()
    for scenario in SCENARIOS:
        durable.calls = disk = RecordedDisk(root, Witness)
        found[scenario.name] = Medium.of(disk).durable
        PoweredDevice(root, server.url).run(*scenario.phases)
    return found
