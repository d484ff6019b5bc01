"""A device beside a server, for every test of fetch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge import request
from holdfast_agent.fetch import blob
from support.fetch_bench import GOOD, SMALL, Bench
from support.hostile_server import (
    running_hostile_server,
)
from support.published import provisioned


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with running_hostile_server() as server:
        made = Bench(server, provisioned(tmp_path, server.url)[1])
        made.serve(GOOD)
        yield made


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces small enough that every test has several; no test waits for a server's sake."""
    monkeypatch.setattr(blob, "PIECE_BYTES", SMALL)
    monkeypatch.setattr(blob, "RESUME_PAUSE_S", 0.0)
    monkeypatch.setattr(request, "SILENCE_S", 0.5)
