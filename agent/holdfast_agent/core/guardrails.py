"""Whether what serves breaches a guardrail of its own release, by what the gateway counted. The judgement is the server's too.

A breach with the action `fall_back` leads back; one with `halt` or `report` is told once, and the server's gates answer it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from holdfast_shared.drift import Watch
from holdfast_shared.failure_codes import GUARDRAILS, FailureCode
from holdfast_shared.judgement import Judgement, Verdict, judge, judge_drift
from holdfast_shared.wire.release import Guardrail, Release
from holdfast_shared.wire.report import Window


class Breach(NamedTuple):
    code: FailureCode
    detail: str


def breach_of(release: Release, window: Window) -> Breach | None:
    """The first guardrail with the action `fall_back` that `window` breaches beyond doubt."""
    return next(_breaches(release, window, ("fall_back",)), None)


def told_of(release: Release, window: Window) -> tuple[Breach, ...]:
    """What `window` breaches of the guardrails that are only told."""
    return tuple(_breaches(release, window, ("halt", "report")))


def drift_rail(release: Release) -> Guardrail | None:
    """The strictest guardrail on drift, which is judged window by window and not by a sliding one."""
    rails = (guardrail for guardrail in release.guardrails if guardrail.metric == "drift")
    return min(rails, key=lambda guardrail: guardrail.threshold, default=None)


def drift_breach(guardrail: Guardrail, watch: Watch) -> Breach | None:
    """What `watch` has seen, if that is drift beyond doubt."""
    found = judge_drift(guardrail.threshold, watch)
    if found.verdict is not Verdict.FAIL:
        return None
    detail = (
        f"drift: {found.feature} has an index of {found.index:.3f} over {found.requests} rows where {found.allowed:.3f} is the"
        f" bound (threshold {found.threshold:g}), {found.bad} windows in a row"
    )
    return Breach(FailureCode.GUARDRAIL_DRIFT, detail)


def _breaches(release: Release, window: Window, actions: tuple[str, ...]) -> Iterator[Breach]:
    for guardrail in release.guardrails:
        if guardrail.action not in actions or guardrail.metric not in GUARDRAILS:
            continue
        found = judge(guardrail.metric, guardrail.threshold, window, guardrail.requests_min)
        if found.verdict is Verdict.FAIL:
            yield Breach(GUARDRAILS[guardrail.metric], _said(found))


def _said(found: Judgement) -> str:
    if found.metric == "memory_bytes":
        return f"memory_bytes: its worker held {found.index:.0f} bytes where {found.threshold:.0f} are allowed"
    return (
        f"{found.metric}: {found.bad} of {found.requests} requests are bad where {found.allowed:g} of all may be "
        f"(threshold {found.threshold:g}, chance {found.chance:.1e})"
    )
