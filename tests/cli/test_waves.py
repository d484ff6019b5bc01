"""Waves, gates and segments as people write them; a typo is named with the option it stands in."""

from __future__ import annotations

import pytest

from holdfast_cli import waves
from holdfast_shared import selector
from holdfast_shared.errors import HoldfastError, Malformed
from holdfast_shared.selector import Term
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.command import GatePlan, WavePlan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5%", WavePlan(share=500)),
        ("100%", WavePlan(share=10_000)),
        ("0.01%", WavePlan(share=1)),
        ("1.5% region=eu-west", WavePlan(share=150, regions=("eu-west",))),
        ("20%  region in (eu-west, us-east)", WavePlan(share=2000, regions=("eu-west", "us-east"))),
        ("100% ring=canary", WavePlan(share=10_000, labels={"ring": "canary"})),
        ("100% region=a, ring=canary", WavePlan(share=10_000, regions=("a",), labels={"ring": "canary"})),
        ("100% requests=5%", WavePlan(share=10_000, requests=500)),
        ("20% region=a, requests=0.5%", WavePlan(share=2000, regions=("a",), requests=50)),
        ("100% ring=canary, requests=x", WavePlan(share=10_000, labels={"ring": "canary", "requests": "x"})),
    ],
)
def test_a_wave_is_a_share_and_a_selector(text: str, expected: WavePlan) -> None:
    assert waves.wave(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "0%",
        "101%",
        "-1%",
        "0.001%",
        "x%",
        "nan%",
        "5% region",
        "5% ring!=canary",
        "5% ring in (a, b)",
        "100% requests=0%",
        "100% requests=%",
    ],
)
def test_a_wave_with_a_typo_names_the_option(text: str) -> None:
    with pytest.raises(Malformed) as raised:
        waves.wave(text)
    assert raised.value.field == "--wave"
    assert raised.value.next_step


def test_shares_of_requests_are_one_wave_each_of_all_devices() -> None:
    assert waves.waves((), "1%, 100%") == (
        WavePlan(share=10_000, requests=100),
        WavePlan(share=10_000, requests=10_000),
    )
    assert waves.waves(("5%",), None) == (WavePlan(share=500),)
    assert waves.request_segment(None) is None
    assert waves.request_segment("tier=beta") == Requests(share=10_000, segment=selector.parse("tier=beta"))


@pytest.mark.parametrize(("texts", "shares"), [((), "1"), ((), "1%,,5%"), (("5%",), "5%"), ((), "0%")])
def test_a_typo_in_them_names_their_option(texts: tuple[str, ...], shares: str) -> None:
    with pytest.raises(Malformed) as raised:
        waves.waves(texts, shares)
    assert raised.value.field == "--request-shares"


def test_a_gate_is_a_metric_and_a_threshold() -> None:
    assert waves.gate("latency_ms_p99=50") == GatePlan(metric="latency_ms_p99", threshold=50.0)
    assert waves.gate("drift=0.2") == GatePlan(metric="drift", threshold=0.2)
    assert waves.gate("null_rate = 0.01") == GatePlan(metric="null_rate", threshold=0.01)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("latency=50", Malformed),
        ("latency_ms_p99", Malformed),
        ("latency_ms_p99=fast", Malformed),
        ("latency_ms_p99=inf", Malformed),
        ("latency_ms_p99=nan", Malformed),
        ("error_rate=-1", Malformed),
        ("power_watts=3", Malformed),
    ],
)
def test_a_gate_with_a_typo_names_the_option(text: str, kind: type[HoldfastError]) -> None:
    with pytest.raises(kind) as raised:
        waves.gate(text)
    assert raised.value.field == "--gate"


def test_a_segment_is_a_selector() -> None:
    assert waves.segment("region=eu-west") == (Term(label="region", op="in", values=("eu-west",)),)
    assert waves.segment("*") == ()
    with pytest.raises(Malformed) as raised:
        waves.segment("region==eu-west")
    assert raised.value.field == "--segment"
