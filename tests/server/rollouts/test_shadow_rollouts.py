"""A rollout whose release only shadows: it is given as that, judged by agreement, and nothing is left of it when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.core import agreement
from holdfast_server.registry import fitting
from holdfast_server.rollouts.fleet import members
from holdfast_shared.errors import Malformed
from holdfast_shared.judgement import Verdict
from holdfast_shared.wire.command import GatePlan, RolloutPause, RolloutResume, RolloutStart, ShadowPlan
from holdfast_shared.wire.report import ShadowCounts
from support.rollout_bench import Bench
from support.rollout_values import PIPELINE

ASKED = ShadowPlan(agreement_min=0.9, rows_min=100, hours_min=0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.publish("1.0.0", "1.1.0")
    made.install("1.0.0")
    return made


def started(bench: Bench, shadow: ShadowPlan = ASKED) -> str:
    rollout = bench.plan("1.1.0", requests_min=None, shadow=shadow)
    bench.command(RolloutStart(rollout=rollout))
    return rollout


def shadowing(bench: Bench) -> set[str]:
    return {name for name, one in bench.devices.items() if one.shadow is not None}


def modes(bench: Bench) -> set[str]:
    return {rule.mode for document in bench.documents().values() for rule in document.rules}


def test_devices_that_agree_take_it_through_all_waves_and_it_serves_nowhere(bench: Bench) -> None:
    bench.shadows["1.1.0"] = ShadowCounts(requests=60, compared=60, agreed=59)
    rollout = started(bench)
    assert "shadow" in modes(bench)
    bench.rounds_until(rollout, "finished")
    gates = bench.rollout(rollout)["waves"][-1]["gates"]
    assert [(gate["metric"], gate["verdict"]) for gate in gates] == [("agreement", "pass")]
    bench.round()
    assert (modes(bench), shadowing(bench)) == ({"serve"}, set())
    assert set(bench.serving().values()) == {"1.0.0"}
    assert {version for one in bench.devices.values() for version in one.activated} == {"1.0.0"}


def test_devices_that_do_not_agree_halt_it_and_nothing_is_condemned(bench: Bench) -> None:
    bench.shadows["1.1.0"] = ShadowCounts(requests=60, compared=60, agreed=30)
    rollout = started(bench)
    bench.rounds_until(rollout, "halted")
    assert "agreement on" in bench.rollout(rollout)["cause"]
    bench.round()
    assert all(not document.condemned for document in bench.documents().values())
    assert (modes(bench), shadowing(bench)) == ({"serve"}, set())


def test_silence_is_no_agreement(bench: Bench) -> None:
    """Devices shadow, and tell of nothing that was compared."""
    rollout = started(bench)
    bench.rounds_until(rollout, "paused", limit=90)
    assert "had no verdict by its deadline" in bench.rollout(rollout)["cause"]


def test_a_device_whose_clock_says_a_day_is_not_believed_more_than_has_passed(bench: Bench) -> None:
    """Each window of these devices says that it was open for a day; a wave that asks for an hour does not pass by them."""
    bench.shadows["1.1.0"] = ShadowCounts(requests=600, compared=600, agreed=600)
    rollout = bench.plan(
        "1.1.0", requests_min=None, deadline_s=7200, shadow=ShadowPlan(agreement_min=0.9, rows_min=100, hours_min=1)
    )
    bench.command(RolloutStart(rollout=rollout))
    for _ in range(5):
        bench.round()
    assert bench.rollout(rollout)["waves"][0]["state"] == "released"
    bench.clock.passes(3600)
    bench.round()
    bench.round()
    assert bench.rollout(rollout)["waves"][0]["state"] == "passed"


def test_a_pause_takes_it_from_all_devices_and_a_resume_gives_it_back(bench: Bench) -> None:
    rollout = started(bench)
    bench.round()
    reached = shadowing(bench)
    assert reached
    bench.command(RolloutPause(rollout=rollout))
    bench.round()
    assert shadowing(bench) == set()
    bench.command(RolloutResume(rollout=rollout))
    bench.round()
    assert shadowing(bench) == reached


def test_a_device_is_asked_as_often_as_before_while_another_release_shadows(bench: Bench) -> None:
    """By its rate of requests waves are planned: what shadows has windows of its own, and answers nothing."""

    def rates() -> set[float | None]:
        with bench.database.read() as connection:
            needs = fitting.needs(connection, bench.digests["1.1.0"], "system")
            return {one.rate_per_s for one in members(connection, PIPELINE, asked=needs, now=bench.now().at)}

    before = rates()
    bench.shadows["1.1.0"] = ShadowCounts(requests=60, compared=60, agreed=59)
    rollout = started(bench)
    bench.rounds_until(rollout, "finished")
    assert rates() == before


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("gates", {"gates": (GatePlan(metric="error_rate", threshold=0.1),)}),
        ("requests_min", {"requests_min": 100}),
        ("deadline_s", {"deadline_s": 3600, "shadow": ShadowPlan(hours_min=2)}),
    ],
)
def test_what_cannot_be_judged_of_a_shadow_is_refused(bench: Bench, field: str, fields: dict[str, object]) -> None:
    with pytest.raises(Malformed) as refused:
        bench.plan("1.1.0", **{"requests_min": None, "shadow": ASKED, **fields})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("compared", "agreed", "hours", "verdict"),
    [
        (99, 99, 80, Verdict.INSUFFICIENT),
        (100, 100, 71, Verdict.INSUFFICIENT),
        (100, 100, 72, Verdict.PASS),
        (1000, 899, 72, Verdict.INSUFFICIENT),  # below the floor, and no more than chance explains
        (1000, 900, 72, Verdict.PASS),
        (1000, 700, 1, Verdict.FAIL),
        (99, 10, 80, Verdict.INSUFFICIENT),
        (0, 0, 100, Verdict.INSUFFICIENT),
    ],
)
def test_it_passes_on_rows_hours_and_the_floor_and_fails_beyond_chance(
    compared: int, agreed: int, hours: int, verdict: Verdict
) -> None:
    asked = ShadowPlan(agreement_min=0.9, rows_min=100, hours_min=72)
    found = agreement.judged(asked, compared=compared, agreed=agreed, watched_us=hours * agreement.HOUR_US)
    assert (found.verdict, found.bad) == (verdict, compared - agreed)
