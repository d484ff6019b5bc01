"""One device's counts against one threshold: `pass`, `fail` or `insufficient`. The device's guardrail and the server's gate
both ask here, so they never disagree.

A rate, and "p99 over 200 ms" alike, is a question about a share: are more than `allowed` of the requests bad? The exact
binomial answers it. A naive quantile or rate of a small window fires on a fifth of healthy ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from holdfast_shared.binomial import upper_tail
from holdfast_shared.drift import Watch
from holdfast_shared.wire.report import Window

# A healthy device is judged breaching once in this many looks. Devices are many and look often, so it is small.
FALSE_ALARM: Final = 1e-4
# So many bad ones are no breach yet, and too many for a pass: 4 of 40 where 1 % may be. Whoever waits for a pass waits for more.
DOUBT: Final = 1e-2
# Of these the threshold is the least that is good; of all others the most. `agreement` is of a release that only shadows.
FLOORS: Final = frozenset({"accuracy_proxy", "agreement"})
# p99: one in a hundred may be slower.
SLOW_SHARE_ALLOWED: Final = 0.01


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT = "insufficient"


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with its evidence: `bad` of `requests`, against the share `allowed`; `chance` is the p-value.

    Of drift: `bad` windows in a row, the newest with `index` of `feature` over `requests` rows, against the bound `allowed`.
    Of memory: `index` bytes against the bound `allowed`.
    """

    verdict: Verdict
    metric: str
    threshold: float
    requests: int
    bad: int
    allowed: float
    chance: float
    index: float = 0.0
    feature: str = ""


def judge(metric: str, threshold: float, window: Window, requests_min: int) -> Judgement:
    """Judge `window` (merge several first: `merged`). Raises ValueError for a metric that counts cannot answer."""
    if metric == "memory_bytes":
        return _judge_memory(threshold, window, requests_min)
    bad, total, allowed = _bad_of_total(metric, threshold, window)
    chance = upper_tail(min(bad, total), total, allowed)
    verdict = _by_chance(chance, bad) if total >= requests_min else Verdict.INSUFFICIENT
    return Judgement(
        verdict=verdict, metric=metric, threshold=threshold, requests=total, bad=bad, allowed=allowed, chance=chance
    )


def _by_chance(chance: float, bad: int) -> Verdict:
    if bad < 2 or chance >= DOUBT:  # a single bad request is no breach and no doubt: it may be the request
        return Verdict.PASS
    return Verdict.FAIL if chance < FALSE_ALARM else Verdict.INSUFFICIENT


def judge_drift(threshold: float, watch: Watch) -> Judgement:
    """Judge what was watched. A single alarm decides nothing: the next window does."""
    verdict = Verdict.INSUFFICIENT if not watch.judged or watch.running else Verdict.PASS
    worst = watch.worst
    return Judgement(
        verdict=Verdict.FAIL if watch.drifted else verdict,
        metric="drift",
        threshold=threshold,
        requests=worst.rows if worst is not None else 0,
        bad=watch.running,
        allowed=worst.bound if worst is not None else threshold,
        chance=1.0,
        index=worst.index if worst is not None else 0.0,
        feature=worst.feature if worst is not None else "",
    )


def _judge_memory(threshold: float, window: Window, requests_min: int) -> Judgement:
    """No chance is in it: what two measurements in a row reached was held. A window without a measurement says nothing."""
    held = window.memory_bytes_max
    known = held > 0 and window.requests >= requests_min
    judged = Verdict.FAIL if held > threshold else Verdict.PASS
    return Judgement(
        verdict=judged if known else Verdict.INSUFFICIENT,
        metric="memory_bytes",
        threshold=threshold,
        requests=window.requests,
        bad=int(held > threshold),
        allowed=threshold,
        chance=1.0,
        index=float(held),
    )


def _bad_of_total(metric: str, threshold: float, window: Window) -> tuple[int, int, float]:
    match metric:
        case "latency_ms_p99":
            return window.latency.count_above(threshold), window.requests, SLOW_SHARE_ALLOWED
        case "error_rate":
            return window.errors, window.requests, threshold
        case "null_rate":
            return window.nulls, window.requests, threshold
        case "accuracy_proxy":
            return window.labelled - window.agreed, window.labelled, 1 - threshold
        case _:
            raise ValueError(f"{metric} is not judged by counts of requests")
