"""What is old is forgotten in small steps; what an active rollout judges by, and what guards against replays, is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, insert

from holdfast_server.ingest import retention as retention_module
from holdfast_server.ingest.retention import EVENTS_KEPT_US, SEEN_KEPT_US, WINDOWS_KEPT_US, Retention
from holdfast_server.store import schema
from holdfast_shared.wire.command import RolloutStart
from support.reporting import everything
from support.rollout_bench import Bench
from support.rollout_values import PIPELINE

DEVICE = "real-eu-west"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish("1.0.0", "1.1.0")
    yield made
    made.database.close()


def put(bench: Bench, table: Table, count: int, **fields: Any) -> None:
    now = bench.now().at
    row: dict[str, Any] = {
        schema.windows.name: {
            "pipeline": PIPELINE, "environment": "system", "opened_at": 0, "closed_at": 1, "requests": 1, "errors": 0,
            "nulls": 0, "hangs": 0, "input_faults": 0, "failed_over": 0, "memory_bytes_max": 0, "latency": "{}",
            "release_digest": bench.digests["1.0.0"],
        },
        schema.device_events.name: {
            "number": 1, "kind": "staged", "pipeline": PIPELINE, "release_version": "1.0.0", "environment": "system",
            "code": "", "detail": "", "at": 0, "at_monotonic_us": 0, "boot": "",
            "release_digest": bench.digests["1.0.0"],
        },
        schema.reports_seen.name: {},
    }[table.name]  # fmt: skip
    counter = {"windows": "window", "device_events": "position", "reports_seen": "number"}[table.name]
    given = {"device": DEVICE, "incarnation": "0" * 16, "received_at": now} | row | fields
    with bench.database.write() as connection:
        start = len(connection.execute(table.select()).all())
        connection.execute(insert(table), [{**given, counter: start + n} for n in range(count)])


def rows(bench: Bench, table: Table) -> int:
    return len(everything(bench.database)[table.name])


@pytest.mark.parametrize(
    ("table", "kept_us", "left"),
    [(schema.windows, WINDOWS_KEPT_US, 7), (schema.device_events, EVENTS_KEPT_US, 7), (schema.reports_seen, SEEN_KEPT_US, 7)],
)  # fmt: skip
def test_what_is_old_goes_and_what_is_young_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, table: Table, kept_us: int, left: int
) -> None:
    monkeypatch.setattr(retention_module, "STEP_ROWS", 10)
    put(bench, table, 35)
    bench.clock.passes(kept_us / 1_000_000 + 1)
    put(bench, table, left)
    steps = list(Retention(bench).steps())
    assert max(steps) <= 10
    assert sum(steps) == 35
    assert rows(bench, table) == left


def test_with_nothing_old_nothing_is_written(bench: Bench) -> None:
    for table in (schema.windows, schema.device_events, schema.reports_seen):
        put(bench, table, 5)
    commits: list[int] = []
    bench.database.after_commit(lambda: commits.append(1))
    assert Retention(bench).round() == 0
    assert not commits


def test_an_active_rollout_keeps_what_it_judges_by(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = bench.plan("1.1.0")
    bench.command(RolloutStart(rollout=rollout))
    for table in (schema.windows, schema.device_events):
        put(bench, table, 3, release_digest=bench.digests["1.1.0"])
    before = [rows(bench, table) for table in (schema.windows, schema.device_events)]
    bench.clock.passes(EVENTS_KEPT_US / 1_000_000 + 1)
    Retention(bench).round()
    kept = everything(bench.database)
    assert len(kept["windows"]) == len(kept["device_events"]) == 3
    assert before[0] > 3


def test_the_newest_number_of_each_incarnation_is_kept(bench: Bench) -> None:
    put(bench, schema.reports_seen, 20)
    put(bench, schema.reports_seen, 20, incarnation="a" * 16)
    bench.clock.passes(SEEN_KEPT_US / 1_000_000 + 1)
    Retention(bench).round()
    assert sorted((row[1][0], row[2]) for row in everything(bench.database)["reports_seen"]) == [("0", 19), ("a", 39)]
