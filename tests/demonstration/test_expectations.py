"""A demo that went wrong says so: each number that can be wrong is spoiled once, and missed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from demonstration.expectations import ROLLBACK_S_MAX, missed

GOOD: dict[str, Any] = {
    "requests": {"sent": 7000, "failed": 0, "failed_over": 12},
    "bad_release": {
        "version": "1.2.0", "local_fallback_ms": 900.0, "breach_to_halt_s": 1.5, "halt_to_fleet_back_s": 0.0,
        "activated": 9, "cohort": 9, "outside_cohort": 0, "evidence": {"real": 2, "light": 0},
    },
    "segment_rollback": {"devices": 1, "p50_s": 0.5, "p95_s": 0.6, "max_s": 0.7, "outside_segment": 0},
    "kills": {"worker": {"failed": 0}, "agent": {"failed": 0}},
}  # fmt: skip
WANTED = {"a": "1.1.0", **{f"b-{number}": "1.3.0" for number in range(20)}}


def of(summary: dict[str, Any], serving: dict[str, str] | None = None) -> list[str]:
    return missed(summary, segment_devices=1, serving=serving or WANTED, wanted=WANTED)


def test_a_good_run_misses_nothing() -> None:
    assert of(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("requests.sent", 0),
        ("requests.failed", 1),
        ("requests.failed_over", 0),
        ("bad_release.activated", 0),
        ("bad_release.outside_cohort", 1),
        ("bad_release.cohort", 21),
        ("bad_release.local_fallback_ms", None),
        ("bad_release.evidence.real", 0),
        ("bad_release.breach_to_halt_s", None),
        ("bad_release.breach_to_halt_s", ROLLBACK_S_MAX + 1),
        ("bad_release.breach_to_halt_s", -0.1),
        ("bad_release.halt_to_fleet_back_s", None),
        ("bad_release.halt_to_fleet_back_s", ROLLBACK_S_MAX + 1),
        ("segment_rollback.devices", 0),
        ("segment_rollback.max_s", ROLLBACK_S_MAX + 1),
        ("segment_rollback.outside_segment", 1),
        ("kills.worker.failed", 1),
        ("kills.agent.failed", 1),
    ],
)
def test_each_number_that_is_wrong_is_missed(path: str, value: object) -> None:
    spoiled = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    place = spoiled
    for name in way:
        place = place[name]
    place[last] = value
    assert len(of(spoiled)) == 1


@pytest.mark.parametrize(
    "spoil", [lambda on: on | {"a": "1.3.0"}, lambda on: {k: v for k, v in on.items() if k != "b-3"}]
)
def test_a_device_that_serves_anything_else_is_missed(spoil: Callable[[dict[str, str]], dict[str, str]]) -> None:
    assert of(GOOD, spoil(WANTED)) == ["the devices' own records do not hold what they should serve"]
