"""A wave's verdict: certain on a bad release, quiet on a good one, and never a pass from silence."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_server.core.plan import Wave
from holdfast_server.core.verdict import DeviceEvidence, judge_wave
from holdfast_shared.binomial import upper_tail
from holdfast_shared.judgement import Judgement, Verdict

PASS, FAIL, INSUFFICIENT = Verdict.PASS, Verdict.FAIL, Verdict.INSUFFICIENT
GATES = (("error_rate", 0.02),)


def wave(devices: int, devices_min: int = 3) -> Wave:
    return Wave(
        number=1, share=10_000, below=10_000, match=(), devices=devices, adds=devices, online=devices,
        real_share=10_000, devices_min=devices_min,
    )  # fmt: skip


def judged(verdict: Verdict) -> tuple[Judgement, ...]:
    bad = 50 if verdict is FAIL else 0
    return (
        Judgement(
            verdict=verdict, metric="error_rate", threshold=0.02, requests=100, bad=bad, allowed=0.02, chance=1.0
        ),
    )


def device(
    name: str,
    verdict: Verdict = PASS,
    *,
    failure: str = "",
    in_wave: bool = True,
    added: bool = True,
    online: bool = True,
    serving: bool = True,
    kind: str = "real",
) -> DeviceEvidence:
    return DeviceEvidence(
        device=name, kind=kind, in_wave=in_wave, added=added, online=online, serving=serving, failure=failure,
        judgements=judged(verdict),
    )  # fmt: skip


def several(count: int, verdict: Verdict = PASS, **more: bool | str) -> list[DeviceEvidence]:
    start = str(more.pop("start", verdict.value))
    return [device(f"{start}-{n}", verdict, **more) for n in range(count)]  # type: ignore[arg-type]


def drifting(name: str) -> DeviceEvidence:
    found = Judgement(
        verdict=FAIL, metric="drift", threshold=0.2, requests=250, bad=2, allowed=0.2, chance=1.0, index=0.9
    )
    return msgspec.structs.replace(device(name), judgements=(*judged(PASS), found))


def test_drift_alone_fails_a_wave_without_blame_and_beside_a_breach_with_it() -> None:
    """It may be the data; devices that also breach another gate say that it is the release."""
    drift = [drifting(f"d-{number}") for number in range(3)]
    found = judge_wave(wave(3), (*GATES, ("drift", 0.2)), drift, soaked=True)
    assert (found.verdict, found.drift_only) == (FAIL, True)
    assert "drift on 3" in found.why
    both = judge_wave(wave(5), (*GATES, ("drift", 0.2)), [*drift, *several(2, FAIL)], soaked=True)
    assert (both.verdict, both.drift_only) == (FAIL, False)


@pytest.mark.parametrize(
    ("name", "devices", "soaked", "expected", "says"),
    [
        ("enough pass", several(3), True, PASS, "3 device(s) of the wave pass"),
        ("not soaked", several(3), False, INSUFFICIENT, "soaks"),
        ("too few pass", [*several(2), *several(1, INSUFFICIENT)], True, INSUFFICIENT, "2 of at least 3"),
        ("silence", several(3, INSUFFICIENT), True, INSUFFICIENT, "0 of at least 3"),
        ("nobody at all", [], True, INSUFFICIENT, "0 of at least 3"),
        ("two of three breach", [*several(1), *several(2, FAIL)], False, FAIL, "error_rate on 2"),
        ("two breach of a hundred", [*several(98), *several(2, FAIL)], True, PASS, ""),
        ("seven breach of a hundred", [*several(93), *several(7, FAIL)], False, FAIL, "7 of 100"),
        ("one of three breaches", [*several(2), *several(1, FAIL)], True, INSUFFICIENT, "2 of at least 3"),
        (
            "fell back, whatever the counts say",
            [device("a"), device("b", failure="null-output"), device("c", failure="crash-loop")],
            False,
            FAIL,
            "crash-loop on 1, null-output on 1",
        ),
        (
            "fell back before any count",
            [device("a", INSUFFICIENT, failure="hang-loop"), device("b", INSUFFICIENT, failure="hang-loop")],
            False,
            FAIL,
            "2 of 2",
        ),
        (
            "old devices pass, none of the new",
            [*several(5, added=False, start="old"), *several(20, INSUFFICIENT)],
            True,
            INSUFFICIENT,
            "0 of at least 3 device(s) that are new",
        ),
        (
            "devices of other waves do not pass this one",
            [*several(5, in_wave=False, added=False, start="old"), *several(20, INSUFFICIENT)],
            True,
            INSUFFICIENT,
            "0 of at least 3 device(s) have enough",
        ),
        (
            "but they can fail it",
            [*several(3, FAIL, in_wave=False, added=False, start="old"), *several(3)],
            True,
            FAIL,
            "3 of 6",
        ),
        (
            "many have not arrived",
            [*several(5), *several(5, INSUFFICIENT, serving=False)],
            True,
            INSUFFICIENT,
            "5 of 10 device(s) seen lately",
        ),
        (
            "sleepers are not waited for",
            [*several(5), *several(5, INSUFFICIENT, serving=False, online=False)],
            True,
            PASS,
            "",
        ),
    ],
)
def test_table(name: str, devices: list[DeviceEvidence], soaked: bool, expected: Verdict, says: str) -> None:
    found = judge_wave(wave(len(devices)), GATES, devices, soaked=soaked)
    assert found.verdict is expected, name
    assert says in found.why
    assert found.why


def test_a_wave_of_one_device_fails_by_that_device() -> None:
    assert judge_wave(wave(1, 1), GATES, [device("a", FAIL)], soaked=False).verdict is FAIL
    assert judge_wave(wave(2, 2), GATES, [device("a", FAIL), device("b")], soaked=True).verdict is INSUFFICIENT
    assert judge_wave(wave(2, 2), GATES, several(2, FAIL), soaked=False).verdict is FAIL


def test_evidence_is_counted_by_kind() -> None:
    devices = [
        device("a", FAIL),
        device("b", failure="null-output"),
        *several(4, kind="light"),
        device("c", INSUFFICIENT),
    ]
    found = judge_wave(wave(7), GATES, devices, soaked=True)
    assert found.evidence == {"real": 2, "light": 4}
    gate, left = found.gates
    assert gate.devices == {"pass": 5, "fail": 1, "insufficient": 1}
    assert left.metric == "device"
    assert left.codes == {"null-output": 1}


def test_a_fleet_with_some_bad_devices_does_not_halt_a_good_release() -> None:
    """Where 1 % of devices are broken whatever runs, a wave of 100 halts less than once in two hundred; of 2 % more than bad
    luck it does."""

    def halts(bad: int) -> bool:
        return judge_wave(wave(100), GATES, [*several(100 - bad), *several(bad, FAIL)], soaked=False).verdict is FAIL

    least = next(bad for bad in range(100) if halts(bad))
    assert upper_tail(least, 100, 0.01) < 0.005
    assert upper_tail(least, 100, 0.20) > 0.99


some_evidence = st.lists(
    st.builds(
        lambda verdict, in_wave, added, online, serving, failure: (
            verdict,
            in_wave,
            added and in_wave,
            online,
            serving,
            failure,
        ),
        st.sampled_from((PASS, FAIL, INSUFFICIENT)),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(("", "", "", "hang-loop")),
    ),
    max_size=30,
)


@given(some_evidence, st.integers(1, 6), st.booleans())
def test_nothing_passes_on_fewer_than_its_minimum_of_reports(
    rows: list[tuple[Verdict, bool, bool, bool, bool, str]], devices_min: int, soaked: bool
) -> None:
    devices = [
        device(f"d-{n}", verdict, in_wave=in_wave, added=added, online=online, serving=serving, failure=failure)
        for n, (verdict, in_wave, added, online, serving, failure) in enumerate(rows)
    ]
    found = judge_wave(wave(30, devices_min), GATES, devices, soaked=soaked)
    if found.verdict is PASS:
        good = [one for one in devices if one.in_wave and one.verdict is PASS]
        assert len(good) >= devices_min
        assert soaked
    if found.verdict is FAIL:
        assert found.failing
