"""Where the server's policy asks for it, a release serves only after a rollout had it shadow, and finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.audit import decisions
from holdfast_shared import selector
from holdfast_shared.errors import Conflict
from holdfast_shared.wire.command import RolloutAbort, RolloutStart, ShadowPlan
from holdfast_shared.wire.report import ShadowCounts
from support.rollout_bench import Bench

PRODUCTION = selector.parse("stage=production")
SHADOW = ShadowPlan(agreement_min=0.9, rows_min=100, hours_min=0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """1.0.0 serves, as the first release that there is: nothing was here that it could have shadowed."""
    made = Bench(tmp_path)
    made.shadow_first = PRODUCTION
    made.publish("1.0.0", "1.1.0")
    made.install("1.0.0")
    return made


def shadowed(bench: Bench, agreed: int, ends: str) -> str:
    bench.shadows["1.1.0"] = ShadowCounts(requests=60, compared=60, agreed=agreed)
    rollout = bench.plan("1.1.0", requests_min=None, shadow=SHADOW)
    bench.command(RolloutStart(rollout=rollout))
    bench.rounds_until(rollout, ends)
    bench.round()
    return rollout


def test_without_a_shadow_it_is_refused_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(
        Conflict, match=r"has not shadowed what serves.*stage=production: no rollout had it shadow"
    ) as refused:
        bench.plan("1.1.0")
    assert "holdfast rollout plan digits 1.1.0 --shadow --start" in refused.value.next_step
    assert refused.value.field == "version"


def test_one_that_did_not_agree_is_no_evidence_and_is_named(bench: Bench) -> None:
    rollout = shadowed(bench, 30, "halted")
    with pytest.raises(Conflict, match=f"{rollout} is halted"):
        bench.plan("1.1.0")


def test_one_that_was_ended_before_its_verdict_is_none_either(bench: Bench) -> None:
    rollout = bench.plan("1.1.0", requests_min=None, shadow=SHADOW)
    with pytest.raises(Conflict, match=f"{rollout} is planned"):
        bench.plan("1.1.0")
    bench.command(RolloutStart(rollout=rollout))
    bench.command(RolloutAbort(rollout=rollout))
    with pytest.raises(Conflict, match=f"{rollout} is aborted"):
        bench.plan("1.1.0")


def test_one_that_finished_lets_it_serve_and_is_the_decisions_evidence(bench: Bench) -> None:
    finished = shadowed(bench, 59, "finished")
    rollout = bench.plan("1.1.0")
    bench.command(RolloutStart(rollout=rollout))
    bench.rounds_until(rollout, "finished")
    with bench.database.read() as connection:
        listed = decisions.listed(connection, after=None, limit=100)["decisions"]
    (planned,) = [one for one in listed if (one["what"], one["subject"]) == ("rollout planned", rollout)]
    assert planned["evidence"]["shadowed"] == [finished]


def test_the_same_release_in_another_environment_has_not_shadowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    other = bench.publish_environment("onnx-cpu", "1.0.0")
    bench.publish("1.0.0", "1.1.0", environments=("system", other))
    bench.install("1.0.0")
    bench.shadow_first = PRODUCTION
    shadowed(bench, 59, "finished")
    bench.plan("1.1.0", segment=selector.parse("region=eu-west"))
    with pytest.raises(Conflict, match="has not shadowed"):
        bench.plan("1.1.0", environment="onnx-cpu@1.0.0", segment=selector.parse("region=us-east"))


def test_elsewhere_and_without_a_policy_nobody_is_asked(bench: Bench) -> None:
    bench.shadow_first = selector.parse("region=us-east")
    bench.plan("1.1.0", segment=selector.parse("region=eu-west"))
    with pytest.raises(Conflict):
        bench.plan("1.1.0", segment=selector.parse("region in (us-east, ap-south)"))
    bench.shadow_first = None
    bench.plan("1.1.0", segment=selector.parse("region=us-east"))


def test_to_have_served_where_nobody_asks_is_no_evidence_where_it_is_asked_for(bench: Bench) -> None:
    """Staging comes before the shadow: what served there alone would else go by the gate."""
    bench.shadow_first = selector.parse("region=us-east")
    rollout = bench.plan("1.1.0", segment=selector.parse("region=eu-west"))
    bench.command(RolloutStart(rollout=rollout))
    bench.rounds_until(rollout, "finished")
    with pytest.raises(Conflict, match="no rollout had it shadow"):
        bench.plan("1.1.0", segment=selector.parse("region=us-east"))


def test_a_rollout_planned_before_there_was_the_policy_is_asked_when_it_starts(bench: Bench) -> None:
    bench.shadow_first = None
    rollout = bench.plan("1.1.0")
    bench.shadow_first = PRODUCTION
    with pytest.raises(Conflict, match="has not shadowed"):
        bench.command(RolloutStart(rollout=rollout))
    assert bench.rollout(rollout)["state"] == "planned"


def test_what_served_before_may_serve_again(bench: Bench) -> None:
    """A way back asks for nothing: neither a rollback, nor a rollout to what finished one once."""
    shadowed(bench, 59, "finished")
    newer = bench.plan("1.1.0")
    bench.command(RolloutStart(rollout=newer))
    bench.rounds_until(newer, "finished")
    bench.plan("1.0.0")
    bench.roll_back("1.1.0", (), "ann", "bob")
    bench.round()
    assert set(bench.serving().values()) == {"1.0.0"}
