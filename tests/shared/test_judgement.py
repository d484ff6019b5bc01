"""One device against one threshold: quiet on healthy windows, certain on bad ones, and never a verdict from too little."""

from __future__ import annotations

import random

import pytest

from holdfast_shared.histogram import Tally
from holdfast_shared.judgement import Verdict, judge
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.report import Window

RELEASE = ReleaseRef(version="1.0.0", digest="sha256:" + "0" * 64)


def window(requests: int, *, errors: int = 0, nulls: int = 0, slow: int = 0, memory: int = 0) -> Window:
    tally = Tally()
    for number in range(requests):
        tally.add(400.0 if number < slow else 20.0)
    return Window(window=1, pipeline="p", release=RELEASE, environment="system", opened_at=0, closed_at=1,
                  requests=requests, errors=errors, nulls=nulls, latency=tally.freeze(), memory_bytes_max=memory)  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "threshold", "counts", "expected"),
    [
        ("latency_ms_p99", 200, window(100), Verdict.PASS),
        ("latency_ms_p99", 200, window(100, slow=1), Verdict.PASS),
        ("latency_ms_p99", 200, window(100, slow=10), Verdict.FAIL),
        ("latency_ms_p99", 500, window(100, slow=10), Verdict.PASS),
        ("latency_ms_p99", 200, window(10, slow=10), Verdict.INSUFFICIENT),
        ("error_rate", 0.02, window(100, errors=2), Verdict.PASS),
        ("error_rate", 0.02, window(100, errors=12), Verdict.FAIL),
        ("null_rate", 0.01, window(50, nulls=6), Verdict.FAIL),
        ("null_rate", 0.01, window(19, nulls=19), Verdict.INSUFFICIENT),
        ("null_rate", 0.01, window(40, nulls=5), Verdict.FAIL),
        ("null_rate", 0.01, window(40, nulls=4), Verdict.INSUFFICIENT),
        ("null_rate", 0.01, window(40, nulls=3), Verdict.INSUFFICIENT),
        ("null_rate", 0.01, window(40, nulls=2), Verdict.PASS),
        ("null_rate", 0.0, window(50, nulls=1), Verdict.PASS),
        ("null_rate", 0.0, window(50, nulls=2), Verdict.FAIL),
        ("error_rate", 0.02, window(0), Verdict.INSUFFICIENT),
        ("memory_bytes", 1000, window(20, memory=1000), Verdict.PASS),
        ("memory_bytes", 1000, window(20, memory=1001), Verdict.FAIL),
        ("memory_bytes", 1000, window(19, memory=1001), Verdict.INSUFFICIENT),
        ("memory_bytes", 1000, window(20), Verdict.INSUFFICIENT),
    ],
)
def test_verdicts(metric: str, threshold: float, counts: Window, expected: Verdict) -> None:
    judged = judge(metric, threshold, counts, requests_min=20)
    assert judged.verdict is expected
    assert judged.requests == counts.requests


def test_healthy_windows_stay_quiet() -> None:
    """1 % of requests slow is what p99 = 200 ms allows: of 4,000 such windows of 300, at most a handful may fail."""
    drawn = random.Random(20_261)
    failures = sum(
        judge("latency_ms_p99", 200, window(300, slow=sum(drawn.random() < 0.01 for _ in range(300))), 20).verdict
        is Verdict.FAIL
        for _ in range(4_000)
    )
    assert failures <= 4


def test_what_counts_cannot_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="drift"):
        judge("drift", 0.2, window(10), 1)
