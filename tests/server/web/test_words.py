"""What people read of a gate: each threshold in its own unit."""

from __future__ import annotations

from typing import get_args

import pytest

from holdfast_server.core import agreement
from holdfast_server.web import words
from holdfast_shared.wire.release import Metric


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("latency_ms_p99", 50, "≤ 50 ms"),
        ("error_rate", 0.02, "≤ 2 %"),
        ("accuracy_proxy", 0.9, "≥ 90 %"),
        ("agreement", 0.99, "≥ 99 %"),
        ("drift", 0.25, "≤ 0.25"),
        ("memory_bytes", 123_456_789, "≤ 123.5 MB"),
        ("memory_bytes", 1_500, "≤ 1,500 bytes"),
        ("device", 0.02, ""),
        ("error_rate", None, ""),
    ],
)
def test_a_threshold_has_its_own_unit(metric: str, value: object, shown: str) -> None:
    assert words.threshold(metric, value) == shown


def test_every_metric_that_a_gate_may_have_has_a_name() -> None:
    assert words.METRICS.keys() >= {*get_args(Metric), agreement.METRIC}
