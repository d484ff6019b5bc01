"""A plan may walk through shares of the requests: what its documents then give, and that it ends with all of them."""

from __future__ import annotations

import pytest

from holdfast_server.core import request_shares
from holdfast_server.core import rollout as machine
from holdfast_server.core.base_rules import BaseRule
from holdfast_server.core.compose import compose
from holdfast_server.core.plan import Plan
from holdfast_server.core.planner import plan
from holdfast_server.core.rollout import Moment, Rollout, State
from holdfast_server.core.standing import Standing, after_step, with_previous
from holdfast_server.core.verdict import WaveVerdict
from holdfast_shared import cohort, selector
from holdfast_shared.assign import Target, View, assign
from holdfast_shared.errors import Malformed
from holdfast_shared.judgement import Verdict
from holdfast_shared.wire.assignment import Assignment, Requests, Scope
from holdfast_shared.wire.command import WavePlan
from support.rollout_values import PIPELINE, asked, digest, fleet, member, placed, ref, release

NOW = Moment(at=1_000, monotonic_us=1_000)
BETA = selector.parse("tier=beta")
BASE = Standing(base=(BaseRule(match=(), release=placed("1.0.0"), cause="r-0"),))
DEVICES = fleet(60)


def planned(*waves: WavePlan, requests: Requests | None = None) -> Plan:
    what = asked(waves=waves, requests=requests, devices_min=1)
    return plan(what, rollout="r-1", release=release(), digest=digest("1.2.0"), fleet=DEVICES)


def shares(*of: int) -> tuple[WavePlan, ...]:
    return tuple(WavePlan(share=10_000, requests=one) for one in of)


def given(found: Plan) -> list[int | None]:
    return [wave.requests.share if wave.requests is not None else None for wave in found.waves]


def test_shares_over_the_same_devices_are_a_wave_each() -> None:
    found = planned(*shares(100, 500, 2_000, 10_000))
    assert given(found) == [100, 500, 2_000, None]
    assert {wave.devices for wave in found.waves} == {63}
    assert [wave.adds for wave in found.waves] == [63, 0, 0, 0]


def test_a_plan_that_ends_with_a_share_gets_a_wave_that_gives_all() -> None:
    found = planned(*shares(500))
    assert given(found) == [500, None]
    assert "wave 2 gives the devices of wave 1 all their requests: so a rollout ends" in found.notes


def test_all_requests_of_a_segment_are_not_all_requests() -> None:
    found = planned(*shares(2_000, 10_000), requests=Requests(share=10_000, segment=BETA))
    assert [wave.requests for wave in found.waves] == [
        Requests(share=2_000, segment=BETA),
        Requests(share=10_000, segment=BETA),
        None,
    ]


def test_a_share_of_the_plan_is_that_of_each_wave_that_says_none() -> None:
    canary = WavePlan(share=10_000, labels={"ring": "canary"})
    found = planned(canary, WavePlan(share=10_000, requests=2_000), requests=Requests(share=500))
    assert given(found) == [500, 2_000, None]


def test_what_gives_its_devices_no_more_than_they_have_is_left_out() -> None:
    found = planned(*shares(2_000, 500, 2_000, 10_000))
    assert given(found) == [2_000, None]


def test_devices_of_several_waves_are_all_given_all_in_the_end() -> None:
    """Each by a wave that has a gate, the widest first."""
    europe = WavePlan(share=10_000, regions=("eu-west",), requests=500)
    asia = WavePlan(share=5_000, regions=("ap-south",), requests=500)
    found = planned(asia, europe)
    assert [(wave.regions, wave.requests is None) for wave in found.waves] == [
        (("ap-south",), False),
        (("eu-west",), False),
        (("eu-west",), True),
        (("ap-south",), True),
    ]
    assert [wave.number for wave in found.waves] == [1, 2, 3, 4]


def test_a_share_of_nothing_is_refused() -> None:
    for waves, requests, field in (
        (shares(0), None, "waves[0].requests"),
        ((WavePlan(share=10_000),), Requests(share=0), "requests.share"),
    ):
        with pytest.raises(Malformed) as raised:
            planned(*waves, requests=requests)
        assert raised.value.field == field


def test_a_share_is_refused_where_nothing_could_answer_the_other_requests() -> None:
    with pytest.raises(Malformed, match="no release that could answer the others"):
        request_shares.check_others_are_answered(with_previous(Standing(), planned(*shares(500))))
    request_shares.check_others_are_answered(with_previous(Standing(), planned(WavePlan(share=10_000))))
    request_shares.check_others_are_answered(with_previous(BASE, planned(*shares(500))))


def test_a_wave_is_refused_that_gets_too_few_of_its_devices_requests() -> None:
    """100 within an hour are one in 36 s; of 1 % of ten a minute there are six."""
    quiet = [member(f"d-{n}", "eu-west", rate_per_s=1 / 6) for n in range(3)]
    what = asked(waves=shares(10_000), requests_min=100, deadline_s=3600)
    assert plan(what, rollout="r", release=release(), digest=digest("1.2.0"), fleet=quiet).waves
    with pytest.raises(Malformed, match="in wave 1"):
        plan(
            asked(waves=shares(100), requests_min=100, deadline_s=3600),
            rollout="r",
            release=release(),
            digest=digest("1.2.0"),
            fleet=quiet,
        )


# ---------------------------------------------------------------- what devices read
def begun(found: Plan) -> tuple[Standing, Rollout]:
    record = machine.planned(with_previous(BASE, found), by="ann", now=NOW)
    return after(BASE, record, machine.Start(by="ann"))


def after(standing: Standing, record: Rollout, event: machine.Event) -> tuple[Standing, Rollout]:
    step = machine.step(record, event, NOW)
    return after_step(standing, step), step.record


def passed(standing: Standing, record: Rollout) -> tuple[Standing, Rollout]:
    verdict = WaveVerdict(wave=record.released, verdict=Verdict.PASS, why="seen")
    return after(standing, record, machine.Judged(verdict=verdict))


def decided(standing: Standing, device: str, *, on_trial: bool = False) -> tuple[str, int | None]:
    """The version and the share that the region's document gives a device."""
    one = next(found for found in DEVICES if found.device == device)
    body = compose(standing, one.region)
    document = Assignment(
        fleet="f", scope=Scope(region=one.region), pipeline=PIPELINE, epoch=1, seq=1, issued_at=0, not_after=1,
        rules=body.rules, condemned=body.condemned,
    )  # fmt: skip
    candidate = Target(release=ref("1.2.0")) if on_trial else None
    view = View(device=device, labels=one.labels, current=Target(release=ref("1.0.0")), candidate=candidate)
    found = assign([document], view)
    assert found.serve is not None
    return found.serve.release.version, found.requests.share if found.requests is not None else None


def test_each_wave_gives_its_share_and_what_is_finished_gives_none() -> None:
    standing, record = begun(planned(*shares(100, 500, 2_000, 10_000)))
    seen = []
    while record.state is State.RUNNING:
        seen.append(decided(standing, "light-7"))
        assert len(compose(standing, "eu-west").rules) == 2
        standing, record = passed(standing, record)
    assert seen == [("1.2.0", 100), ("1.2.0", 500), ("1.2.0", 2_000), ("1.2.0", None)]
    assert record.state is State.FINISHED
    assert decided(standing, "light-7") == ("1.2.0", None)
    assert [rule.requests for rule in compose(standing, "eu-west").rules] == [None]


def test_a_device_in_several_waves_has_the_largest_share() -> None:
    canary = WavePlan(share=10_000, labels={"ring": "canary"}, requests=2_000)
    standing, record = begun(planned(canary, WavePlan(share=3_000, requests=500), *shares(1_000, 10_000)))
    standing, record = passed(standing, record)
    few = [one.device for one in DEVICES if cohort.bucket("r-1", one.device) < 3_000 and "light" in one.device]
    others = [one.device for one in DEVICES if one.device not in few and "light" in one.device]
    assert decided(standing, "real-eu-west") == ("1.2.0", 2_000)
    assert {decided(standing, one) for one in few} == {("1.2.0", 500)}
    assert {decided(standing, one) for one in others} == {("1.0.0", None)}
    standing, record = passed(standing, record)
    assert {decided(standing, one) for one in (*few, *others)} == {("1.2.0", 1_000)}
    assert decided(standing, "real-eu-west") == ("1.2.0", 2_000)


def test_a_pause_keeps_the_share_and_an_abort_takes_it_away() -> None:
    standing, record = begun(planned(*shares(500)))
    paused, stopped = after(standing, record, machine.Pause(by="ann"))
    assert decided(paused, "light-7", on_trial=True) == ("1.2.0", 500)
    assert decided(paused, "light-7") == ("1.0.0", None)
    aborted, _ = after(paused, stopped, machine.Abort(by="ann"))
    assert decided(aborted, "light-7", on_trial=True) == ("1.0.0", None)


def test_a_wave_is_given_by_a_device_that_gives_as_much_or_more() -> None:
    some, whole = planned(*shares(500)).waves
    assert [some.is_given_by(one) for one in (None, Requests(share=500), Requests(share=2_000))] == [True] * 3
    assert not some.is_given_by(Requests(share=100))
    assert not some.is_given_by(Requests(share=2_000, segment=BETA))
    assert whole.is_given_by(None)
    assert not whole.is_given_by(Requests(share=10_000))
