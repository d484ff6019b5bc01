"""Gates on what only a release that declares it is measured by: labels that were told later, and drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.ingest.rows import Measures
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.command import GatePlan, RolloutAbort, RolloutStart
from holdfast_shared.wire.release import Blob, Guardrail
from holdfast_shared.wire.report import DriftCounts
from support.rollout_bench import Bench
from support.rollout_values import digest

ACCURACY = Guardrail(metric="accuracy_proxy", threshold=0.9, action="halt", requests_min=10, window_s=60)
DRIFT = Guardrail(metric="drift", threshold=0.2, action="halt", requests_min=200, window_s=60)
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
