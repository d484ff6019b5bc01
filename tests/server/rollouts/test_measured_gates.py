"""Gates on what only a release that declares it is measured by: labels that were told later, and drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.ingest.rows import Measures
from holdfast_server.rollouts import evidence
from holdfast_shared.errors import Malformed
from holdfast_shared.histogram import Histogram
from holdfast_shared.wire.command import GatePlan, RolloutAbort, RolloutResume, RolloutStart
from holdfast_shared.wire.release import Blob, Guardrail
from holdfast_shared.wire.report import DriftCounts
from support.rollout_bench import Bench
from support.rollout_values import digest

ACCURACY = Guardrail(metric="accuracy_proxy", threshold=0.9, action="halt", requests_min=10, window_s=60)
DRIFT = Guardrail(metric="drift", threshold=0.2, action="halt", requests_min=200, window_s=60)
MIB = 1024**2
MEMORY = Guardrail(metric="memory_bytes", threshold=100 * MIB, action="fall_back", requests_min=20, window_s=60)
REFERENCE = Blob(digest=digest("bins"), size_bytes=10)
EXPECTED = (100, 100, 100, 100)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.publish("1.0.0")
    made.publish("1.1.0", "1.2.0", guardrails=(ACCURACY, DRIFT), scores="label", reference=REFERENCE)
    made.install("1.0.0")
    return made


def measures(*, right: int = 29, counts: tuple[int, ...] = (55, 50, 45, 50)) -> Measures:
    drift = DriftCounts(feature="ink", counts=counts, expected=EXPECTED)
    return Measures(labelled=30, agreed=right, drift=(drift,))


def started(bench: Bench, version: str) -> str:
    rollout = bench.plan(version)
    bench.command(RolloutStart(rollout=rollout))
    return rollout


def test_a_release_that_is_right_and_undrifted_goes_through(bench: Bench) -> None:
    bench.measures["1.1.0"] = measures()
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, "finished")
    shown = bench.rollout(rollout)["waves"][0]["gates"]
    assert {gate["metric"]: gate["verdict"] for gate in shown} == {"accuracy_proxy": "pass", "drift": "pass"}


def test_predictions_that_turn_out_wrong_halt_a_rollout_and_take_it_back(bench: Bench) -> None:
    bench.measures["1.1.0"] = measures(right=20)
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, "halted")
    assert "accuracy_proxy on" in bench.rollout(rollout)["cause"]
    bench.round()
    bench.round()
    assert set(bench.serving().values()) == {"1.0.0"}


@pytest.mark.parametrize(("holds", "ends"), [(90 * MIB, "finished"), (110 * MIB, "halted")])
def test_a_release_that_holds_too_much_memory_is_halted_by_its_gate(tmp_path: Path, holds: int, ends: str) -> None:
    bench = Bench(tmp_path)
    bench.publish("1.0.0")
    bench.publish("1.1.0", guardrails=(MEMORY,))
    bench.install("1.0.0")
    bench.memory["1.1.0"] = holds
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, ends)
    assert ends == "finished" or "memory_bytes on" in bench.rollout(rollout)["cause"]


def test_drift_stops_a_rollout_and_takes_nothing_back(bench: Bench) -> None:
    """Who serves it goes on; nobody else gets it; a person decides, and may end it."""
    bench.measures["1.1.0"] = measures(counts=(150, 30, 10, 10))
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, "paused")
    assert bench.rollout(rollout)["cause"].startswith("it may be the data: ")
    before = bench.serving()
    for _ in range(5):
        bench.round()
    assert bench.serving() == before
    assert "1.1.0" in before.values()
    assert all(not document.condemned for document in bench.documents().values())
    bench.command(RolloutAbort(rollout=rollout))


def paused_on_drift(bench: Bench) -> str:
    bench.measures["1.1.0"] = measures(counts=(150, 30, 10, 10))
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, "paused")
    return rollout


def test_who_resumes_has_seen_the_drift_until_then(bench: Bench) -> None:
    """It goes on, and to its end where the input is as before; what was counted of its conduct still counts."""
    rollout = paused_on_drift(bench)
    bench.command(RolloutResume(rollout=rollout))
    bench.scheduler.tick()
    assert bench.rollout(rollout)["state"] == "running"
    bench.measures["1.1.0"] = measures()
    bench.rounds_until(rollout, "finished")


def test_drift_that_goes_on_pauses_a_resumed_rollout_again(bench: Bench) -> None:
    rollout = paused_on_drift(bench)
    bench.command(RolloutResume(rollout=rollout))
    assert bench.rounds_until(rollout, "paused") >= 2, "two windows running, as at first"
    assert bench.rollout(rollout)["cause"].startswith("it may be the data: ")


@pytest.mark.parametrize("behind_s", [0, 86_400], ids=["", "by a clock that is a day behind"])
def test_a_window_that_closed_before_the_resume_and_came_later_is_of_before(bench: Bench, behind_s: int) -> None:
    """Where its clock is wrong, by its clock: see `Device.clock_behind_us`."""
    bench.clocks_behind_us = behind_s * 1_000_000
    rollout = paused_on_drift(bench)
    bench.command(RolloutResume(rollout=rollout))
    bench.spooled_us = 60 * 1_000_000
    for _ in range(4):
        bench.round()
        assert bench.rollout(rollout)["state"] == "running"
    bench.spooled_us = 0
    bench.clock.passes(60)
    bench.rounds_until(rollout, "paused")


def test_without_labels_a_gate_on_them_lets_nothing_pass(bench: Bench) -> None:
    """Silence is not accuracy."""
    rollout = started(bench, "1.1.0")
    for _ in range(8):
        bench.round()
    shown = bench.rollout(rollout)
    assert (shown["state"], shown["waves"][0]["state"]) == ("running", "released")


def test_a_gate_that_could_never_get_a_count_is_refused(bench: Bench) -> None:
    with pytest.raises(Malformed) as found:
        bench.plan("1.0.0", gates=(GatePlan(metric="drift", threshold=0.2),))
    assert found.value.field == "gates[0].metric"
    assert "declares no reference" in found.value.message


def test_memory_is_looked_at_however_many_requests_were_counted() -> None:
    """Counts stop at a bound; what a worker holds is no count."""
    counts = evidence._Counts()
    counts.add(evidence.REQUESTS_COUNTED_MAX, 0, 0, Histogram(), 100)
    counts.add(1, 0, 0, Histogram(), 200)
    assert (counts.requests, counts.memory_bytes) == (evidence.REQUESTS_COUNTED_MAX, 200)
