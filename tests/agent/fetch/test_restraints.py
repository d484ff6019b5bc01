"""A fetch that is held back on purpose: by a cap, and by a metered network's bytes of the day, which survive every restart."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent.core import budget
from holdfast_agent.edge import request
from holdfast_agent.edge.configuration import Network
from holdfast_agent.fetch import allowance
from holdfast_agent.fetch.allowance import Allowance
from holdfast_agent.fetch.line import Cap
from holdfast_agent.fetch.outcome import Failed, Outcome
from holdfast_shared import strict_json
from support.fetch_bench import ETAG, GOOD, WEIGHTS, WEIGHTS_PATH, Bench, ranges
from support.hostile_server import Turn, cut, honest, trickle
from support.installed_release import Published

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


class Device:
    """Whose clock is at noon of one day, and may be moved to another."""

    def __init__(self, bench: Bench, **network: Any) -> None:
        self.bench, self.now = bench, NOON
        given: dict[str, Any] = {"metered": "yes", "metered_bytes_per_day": 120_000}
        self.network = Network(**given | network)

    def fetch(self, published: Published = GOOD, *, urgent: bool = False, settle: bool = True) -> Outcome:
        file = self.bench.folder.network_budget
        held = Allowance(file, self.network, UTC, urgent=urgent, clock=lambda: self.now)
        ended = self.bench.fetch(published, restraints=[held])
        if settle:
            held.settle()
        return ended

    @property
    def spent(self) -> int:
        raw = self.bench.folder.network_budget.read_bytes()
        return strict_json.decode(raw, budget.Spent, what="spent", size_bytes_max=4096).size_bytes

    @property
    def came(self) -> int:
        return self.bench.folder.partial_blob(GOOD.weights).stat().st_size


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "PORTION_BYTES", 50_000)


def test_the_days_bytes_are_used_up_and_the_next_day_goes_on_from_there(bench: Bench) -> None:
    device = Device(bench)
    ended = device.fetch()
    assert (ended.code, ended.retry_after_s) == ("over-budget", 12 * 3600)
    assert "120000 bytes for today" in ended.detail
    first = device.came
    assert 80_000 < first <= 120_000 + 65_536
    bench.server.requests.clear()
    assert device.fetch().code == "over-budget"
    assert bench.server.requests == [], "nothing is asked for"
    device.now += 86_400
    assert device.fetch().code == "over-budget"
    assert ranges(bench) == [f"bytes={first}-"]
    device.now += 86_400
    assert device.fetch().ok


def test_what_crossed_the_wire_counts_wherever_it_went(bench: Bench) -> None:
    """Bytes of a body that broke off, and of one that is fetched a second time, cost like all others."""
    device = Device(bench, metered_bytes_per_day=10_000_000)
    bench.server.on(WEIGHTS_PATH, cut(b"\0" * len(WEIGHTS), 200_000, ETAG), cut(WEIGHTS, 1_000_000, ETAG))
    assert device.fetch().code == "fetch-damaged" or device.fetch().ok
    assert device.spent > len(WEIGHTS)


def test_it_counts_neither_more_nor_less_than_came(bench: Bench) -> None:
    device = Device(bench, metered_bytes_per_day=10_000_000)
    assert device.fetch().ok
    bodies = sum(map(len, GOOD.blobs.values())) + sum(map(len, GOOD.manifests.values()))
    requests = len(bench.server.requests) * allowance.REQUEST_BYTES
    assert device.spent == bodies + requests


def test_a_fetch_that_was_killed_has_counted_too_much_rather_than_too_little(bench: Bench) -> None:
    device = Device(bench, metered_bytes_per_day=200_000)
    assert device.fetch(settle=False).code == "over-budget"
    assert device.spent >= 200_000
    assert device.fetch().code == "over-budget"


@pytest.mark.parametrize(
    ("may_exceed", "urgent", "code"),
    [(False, False, "over-budget"), (False, True, "over-budget"), (True, False, "over-budget"), (True, True, "")],
)
def test_only_an_urgent_fetch_passes_it_and_only_where_it_may(
    bench: Bench, may_exceed: bool, urgent: bool, code: str
) -> None:
    device = Device(bench, urgent_may_exceed=may_exceed)
    assert device.fetch(urgent=urgent).code == code
    assert code or device.spent > len(WEIGHTS), "it is counted all the same"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no", ""),
        (b"no\n", ""),
        (b"yes", "over-budget"),
        (b"", "over-budget"),
        (b"perhaps", "over-budget"),
        (None, "over-budget"),
    ],
)
def test_a_hooks_file_says_whether_it_costs_and_what_is_not_known_costs(
    bench: Bench, tmp_path: Path, content: bytes | None, code: str
) -> None:
    told = tmp_path / "metered"
    if content is not None:
        told.write_bytes(content)
    assert Device(bench, metered=str(told)).fetch().code == code


def test_a_network_that_becomes_metered_on_the_way_is_noticed(bench: Bench, tmp_path: Path) -> None:
    told = tmp_path / "metered"
    told.write_bytes(b"no")
    device = Device(bench, metered=str(told), metered_bytes_per_day=0)

    def from_now_on(turn: Turn) -> None:
        told.write_bytes(b"yes")
        honest(WEIGHTS, ETAG)(turn)

    bench.server.on(WEIGHTS_PATH, cut(WEIGHTS, 100_000, ETAG), from_now_on)
    assert device.fetch().code == "over-budget"
    assert 100_000 < device.came < len(WEIGHTS)


def test_a_damaged_count_begins_anew(bench: Bench) -> None:
    device = Device(bench)
    bench.folder.root.mkdir(parents=True, exist_ok=True)
    bench.folder.network_budget.write_bytes(b"\0\0\0")
    assert device.fetch().code == "over-budget"
    assert device.came > 0


def test_capped_it_takes_at_least_its_time_and_no_floor_calls_it_slow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a cap of four times the floor, with windows of a second: held back on purpose is not slow."""
    monkeypatch.setattr("holdfast_agent.fetch.patience.FLOOR_WINDOW_S", 0.2)
    monkeypatch.setattr("holdfast_agent.fetch.patience.BYTES_PER_S_MIN", 50_000)
    monkeypatch.setattr(request, "_PIECE_BYTES", 4_096)
    began = time.monotonic()
    assert bench.fetch(restraints=[Cap(200_000)]).ok
    assert time.monotonic() - began >= len(WEIGHTS) / 200_000 - 0.5


def test_the_deadline_holds_under_the_cap_and_what_came_is_kept(bench: Bench) -> None:
    assert bench.fetch(restraints=[Cap(50_000)], deadline_s=2.0).code == "fetch-too-slow"
    assert bench.folder.partial_blob(GOOD.weights).stat().st_size > 0
    bench.server.on(WEIGHTS_PATH, trickle(b"HTTP/1.1 200 OK\r\n\r\n", 0.2))
    assert bench.fetch(restraints=[Cap(50_000)], deadline_s=1.0).code == "fetch-too-slow"


def test_a_budget_of_nothing_lets_nothing_be_asked(bench: Bench) -> None:
    device = Device(bench, metered_bytes_per_day=0)
    assert device.fetch().code == "over-budget"
    assert bench.server.requests == []
    with pytest.raises(Failed):
        Allowance(bench.folder.network_budget, device.network, UTC, urgent=False).begin()


def test_what_is_all_here_needs_no_window_and_what_is_not_asks_for_nothing(bench: Bench) -> None:
    """Outside of its download window a device may still look at its own disk."""
    ended = bench.fetch(from_disk=True)
    assert (ended.code, bench.server.requests) == ("outside-window", []), "not even for a manifest"
    assert bench.fetch().ok
    bench.server.requests.clear()
    assert bench.fetch(from_disk=True).ok
    bench.folder.blob(GOOD.weights).write_bytes(WEIGHTS[:-1] + b"!")
    bench.folder.manifest(GOOD.digest).rename(bench.folder.partial_manifest(GOOD.digest))
    ended = bench.fetch(from_disk=True)
    assert (ended.code, bench.server.requests) == ("outside-window", []), "nor for a blob that rotted"
