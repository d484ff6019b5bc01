"""What devices said of a release that shadowed: each window once, summed to what people decide by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_server.ingest import recording
from holdfast_server.rollouts import shadows
from holdfast_server.rollouts.shadows import HOUR_US, Told
from holdfast_shared.histogram import Histogram, bin_of
from holdfast_shared.wire.report import SCORE_BINS, ShadowCounts
from support.reporting import PIPELINE, RELEASE, Ground, Reporter, sqlite_ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with sqlite_ground(tmp_path) as made:
        yield made


def told(device: str, **fields: object) -> Told:
    return Told(device, 0, HOUR_US, ShadowCounts(**fields))  # type: ignore[arg-type] # a row of a table of fields


def test_windows_are_summed_and_hours_are_a_devices_own() -> None:
    found = shadows.summed(
        [
            told("a", requests=10, dropped=1, compared=20, agreed=19, difference=(1, 2)),
            told("a", requests=5, compared=10, agreed=10, nulls=1, difference=(0, 0, 3)),
            told("b", requests=5, compared=10, agreed=6, errors=2, hangs=1, incomparable=2),
        ]
    )
    assert (found["devices"], found["hours"]) == (2, 2.0)
    assert (found["requests"], found["dropped"], found["errors"], found["incomparable"]) == (20, 1, 2, 2)
    assert found["agreement"] == 35 / 40
    assert found["difference"] == [1, 2, 3]


def test_a_device_that_says_more_agreed_than_was_compared_is_not_believed() -> None:
    assert shadows.summed([told("liar", compared=10, agreed=10**9), told("b", compared=10)])["agreement"] == 0.5


def test_nothing_told_is_no_agreement() -> None:
    found = shadows.summed([])
    assert (found["devices"], found["agreement"], found["latency_ms"]) == (0, None, {"p50": None, "p99": None})
    assert found["drift"] == {"confidence": None, "margin": None}


def test_latencies_of_both_are_of_the_same_requests_and_drift_is_between_their_scores() -> None:
    sure, unsure = (0,) * (SCORE_BINS - 1) + (400,), (0,) * 10 + (400,) + (0,) * (SCORE_BINS - 11)
    part = told(
        "a",
        latency=Histogram(((bin_of(8.0), 99), (bin_of(80.0), 1))),
        serving_latency=Histogram(((bin_of(4.0), 100),)),
        confidence=unsure,
        serving_confidence=sure,
        margin=sure,
        serving_margin=sure,
    )
    found = shadows.summed([part])
    assert found["latency_ms"]["p50"] == pytest.approx(8.0, rel=0.011)
    assert found["serving_latency_ms"]["p99"] == pytest.approx(4.0, rel=0.011)
    assert found["drift"]["confidence"] > 1
    assert found["drift"]["margin"] == 0


def test_only_so_many_windows_are_looked_at_and_the_answer_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest: a fleet's week is more than anybody waits for."""
    reporter = Reporter().enrol(ground.database)
    monkeypatch.setattr(shadows, "WINDOWS_MAX", 2)
    now = ground.now().at
    for number in range(3):
        window = reporter.window(1 + number, shadow=ShadowCounts(requests=10**number))
        with ground.database.write() as connection:
            recording.record(connection, ground.director, [reporter.report(windows=(window,))], now + number)
    with ground.database.read() as connection:
        found = shadows.of_device(connection, reporter.device, PIPELINE, RELEASE.digest, now)
    assert (found["requests"], found["complete"]) == (110, False)


def test_a_window_that_is_reported_twice_counts_once_and_nothing_is_judged_by_it(ground: Ground) -> None:
    """Over the tables that ingest writes: a report, the same window in another report, and one that nobody shadowed."""
    reporter = Reporter().enrol(ground.database)
    window = reporter.window(1, shadow=ShadowCounts(requests=9, compared=9, agreed=8))
    reports = [reporter.report(windows=(window,)), reporter.report(windows=(window, reporter.window(30)))]
    now = ground.now().at
    with ground.database.write() as connection:
        recording.record(connection, ground.director, reports, now)
    with ground.database.read() as connection:
        found = shadows.of_device(connection, reporter.device, PIPELINE, RELEASE.digest, now)
        other = shadows.of_device(connection, "another", PIPELINE, RELEASE.digest, now)
        later = shadows.of_device(
            connection, reporter.device, PIPELINE, RELEASE.digest, now + shadows.DEVICE_HOURS * HOUR_US
        )
    assert (found["devices"], found["requests"], found["agreed"]) == (1, 9, 8)
    assert (other["devices"], later["devices"]) == (0, 0)
