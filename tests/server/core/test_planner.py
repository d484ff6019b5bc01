"""Plans hold enough devices to reach a verdict, say what they really do, or are refused with the field and the next step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_server.core.plan import Gate, Member, Plan
from holdfast_server.core.planner import plan
from holdfast_server.core.verdict import DeviceEvidence, judge_wave
from holdfast_shared import selector
from holdfast_shared.errors import HoldfastError, Malformed
from holdfast_shared.judgement import Verdict
from holdfast_shared.wire.assignment import TimeSpan, Windows
from holdfast_shared.wire.command import GatePlan, RolloutPlan, WavePlan
from holdfast_shared.wire.release import Guardrail
from support.rollout_values import PIPELINE, asked, digest, fleet, member, placed, release


def planned(
    what: RolloutPlan, members: list[Member], *, rollout: str = "r-1", guardrails: tuple[Guardrail, ...] = ()
) -> Plan:
    made = release(what.version, guardrails=guardrails)
    return plan(what, rollout=rollout, release=made, digest=digest(what.version), fleet=members)


def test_by_default_the_canary_ring_then_all_regions_at_1_5_20_100_percent() -> None:
    found = planned(asked(), fleet(300))
    assert [wave.share for wave in found.waves] == [10_000, 100, 500, 2_000, 10_000]
    assert found.waves[0].labels == {"ring": "canary"}
    assert [wave.devices for wave in found.waves][0::4] == [3, 303]
    assert all(wave.devices_min == 3 <= wave.devices for wave in found.waves)
    assert found.release == placed("1.2.0")


def test_a_share_too_small_is_raised_to_the_smallest_bucket_that_holds_the_minimum() -> None:
    found = planned(asked(devices_min=3), fleet(60))
    wave = found.waves[1]
    assert wave.share == 100
    assert wave.below > 100
    assert wave.devices == 3
    assert wave.real_share == round(3 / 63 * 10_000)
    assert any("to hold 3 device(s)" in note for note in found.notes)


def test_the_chance_to_see_a_defect_stands_beside_the_wave() -> None:
    """A defect on 5 % of devices is seen by 1 / 20 / 60 canaries with probability 5 / 64 / 95 %."""
    for count, seen in ((1, 0.05), (20, 0.64), (60, 0.95)):
        found = planned(asked(waves=(WavePlan(share=10_000),)), [member(f"d-{n}", "eu-west") for n in range(count)])
        assert found.waves[0].defect_seen["5%"] == pytest.approx(seen, abs=0.005)


def test_one_device_is_a_fleet_of_one_wave() -> None:
    found = planned(asked(), [member("alone", "eu-west")])
    assert [(wave.share, wave.devices, wave.devices_min) for wave in found.waves] == [(10_000, 1, 1)]
    assert found.notes


@pytest.mark.parametrize(("count", "alone"), [(1, True), (2, False)])
def test_a_wave_that_one_device_alone_can_halt_says_so(count: int, alone: bool) -> None:
    """As the verdict has it."""
    members = [member(f"d-{n}", "eu-west") for n in range(count)]
    found = planned(asked(devices_min=1, waves=(WavePlan(share=10_000),)), members)
    assert ("wave 1 has fewer than 2 devices: one device alone that fails halts the rollout" in found.notes) is alone
    told = [
        DeviceEvidence(
            device=one.device, kind="real", in_wave=True, added=True, online=True, serving=True,
            failure="guardrail-null-rate" if one is members[0] else "",
        )
        for one in members
    ]  # fmt: skip
    verdict = judge_wave(found.waves[0], (), told, soaked=True).verdict
    assert (verdict is Verdict.FAIL) is alone


def test_waves_that_add_no_device_are_left_out() -> None:
    found = planned(asked(), fleet(3))
    assert all(wave.adds > 0 for wave in found.waves)
    assert found.waves[-1].share == 10_000


def test_devices_seen_lately_fill_the_minimum_first() -> None:
    """A cohort of sleepers would wait for its deadline."""
    members = [member(f"d-{n}", "eu-west", online=n % 10 == 0) for n in range(100)]
    found = planned(asked(waves=(WavePlan(share=100), WavePlan(share=10_000)), devices_min=4), members)
    assert found.waves[0].online == 4


def test_gates_come_from_the_releases_own_guardrails() -> None:
    rails = (
        Guardrail(metric="latency_ms_p99", threshold=80, action="fall_back", requests_min=20, window_s=10),
        Guardrail(metric="latency_ms_p99", threshold=120, action="report", requests_min=20, window_s=10),
        Guardrail(metric="null_rate", threshold=0.01, action="fall_back", requests_min=20, window_s=10),
    )
    found = planned(asked(), fleet(30), guardrails=rails)
    assert found.gates == (Gate(metric="latency_ms_p99", threshold=80), Gate(metric="null_rate", threshold=0.01))
    assert {gate.metric for gate in planned(asked(), fleet(30)).gates} == {"error_rate", "null_rate"}


QUIET = [member(f"d-{n}", "eu-west", rate_per_s=0.001) for n in range(10)]
LOUD = [member(f"d-{n}", "eu-west", rate_per_s=5.0) for n in range(10)]


@pytest.mark.parametrize(
    ("what", "members", "field", "says"),
    [
        (asked(segment=selector.parse("region=eu-wset")), fleet(), "segment", "did you mean 'eu-west'"),
        (asked(segment=selector.parse("site=a")), fleet(), "segment", "no device has the label 'site'"),
        (asked(segment=selector.parse("region=eu-west, device=real-us-east")), fleet(), "segment", "no device is in"),
        (asked(waves=(WavePlan(share=100, regions=("eu-wets",)),)), fleet(), "waves[0].regions", "eu-west"),
        (asked(waves=(WavePlan(share=100, labels={"ring": "canari"}),)), fleet(), "waves[0].labels", "canary"),
        (asked(waves=(WavePlan(share=0),)), fleet(), "waves[0].share", "no device"),
        (asked(devices_min=5), fleet(), "waves[0]", "3 device(s), fewer than the 5"),
        (asked(requests_min=2, gates=(GatePlan(metric="error_rate", threshold=0.5),)), fleet(), "requests_min", "never breach"),
        (asked(gates=(GatePlan(metric="null_rate", threshold=1.0),)), fleet(), "gates", "every request may be bad"),
        (asked(soak_s=60, deadline_s=60), fleet(), "deadline_s", "never pass"),
        (asked(requests_min=100, deadline_s=600), QUIET, "requests_min", "present rate"),
        (
            asked(segment=selector.parse("region=eu-west"), waves=(WavePlan(share=100, regions=("us-east",)),)),
            fleet(),
            "waves[0]",
            "outside the segment",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_work_is_refused(what: RolloutPlan, members: list[Member], field: str, says: str) -> None:
    with pytest.raises(Malformed) as caught:
        planned(what, members)
    assert caught.value.field == field
    assert says in caught.value.message
    assert caught.value.next_step


NIGHT = Windows(
    download=(TimeSpan(from_="22:00", to="04:00"),), switch=(TimeSpan(from_="02:00", to="04:00", days=(6,)),)
)


def test_a_plan_keeps_its_windows_and_gives_them_time_to_open() -> None:
    """One that opens once a week is no reason to miss a deadline."""
    found = planned(asked(windows=NIGHT), fleet())
    assert found.windows == NIGHT
    assert found.deadline_s > 7 * 86_400 > planned(asked(), fleet()).deadline_s
    assert planned(asked(windows=NIGHT, deadline_s=3_600), fleet()).deadline_s == 3_600


def test_a_spread_is_kept_and_has_its_time_before_the_deadline() -> None:
    found = planned(asked(spread_s=86_400, soak_s=600), fleet())
    assert (found.spread_s, found.deadline_s) == (86_400, 2 * 87_000)
    with pytest.raises(Malformed, match="spread over 3600 s"):
        planned(asked(spread_s=3_600, soak_s=600, deadline_s=4_000), fleet())
    assert planned(asked(soak_s=600, deadline_s=4_000), fleet()).spread_s is None


def test_a_known_rate_that_is_high_enough_is_no_obstacle() -> None:
    assert planned(asked(requests_min=100, deadline_s=600), LOUD).waves


def assert_clear(refusal: HoldfastError) -> None:
    assert refusal.field
    assert refusal.next_step


regions = st.sampled_from(("eu-west", "us-east", "ap-south"))
members_of_fleets = st.lists(
    st.builds(
        lambda region, ring, online: (region, ring, online),
        regions,
        st.sampled_from(("canary", "field")),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
).map(
    lambda rows: [member(f"d-{n}", region, ring=ring, online=online) for n, (region, ring, online) in enumerate(rows)]
)
wave_lists = st.lists(
    st.builds(
        lambda share, where, ring: WavePlan(share=share, regions=where, labels=ring),
        st.integers(1, 10_000),
        st.lists(regions, max_size=2, unique=True).map(tuple),
        st.sampled_from(({}, {"ring": "canary"})),
    ),
    max_size=5,
).map(tuple)


@given(members_of_fleets, wave_lists, st.integers(1, 5) | st.none(), st.text("abc123", min_size=1, max_size=8))
@settings(max_examples=150)
def test_each_wave_holds_its_minimum_and_cohorts_nest(
    members: list[Member], waves: tuple[WavePlan, ...], devices_min: int | None, rollout: str
) -> None:
    """For any fleet and any waves: refused with a field, or every wave has its minimum, and what is reached only grows."""
    try:
        found = planned(asked(waves=waves, devices_min=devices_min), members, rollout=rollout)
    except HoldfastError as error:
        assert_clear(error)
        return
    before: set[str] = set()
    for wave in found.waves:
        inside = {one.device for one in members if wave.reaches(rollout, one.device, one.labels)}
        reached = {one.device for one in found.reached(wave.number, members)}
        assert len(inside) == wave.devices >= wave.devices_min >= 1
        assert reached == before | inside
        assert wave.adds == len(inside - before)
        assert wave.adds > 0 or wave is found.waves[-1]
        before = reached
    assert found.pipeline == PIPELINE
