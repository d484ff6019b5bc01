"""Whether what serves breaches a guardrail of its own release, by what the gateway counted. The judgement is the server's too."""

from __future__ import annotations

from typing import NamedTuple

from holdfast_shared.failure_codes import GUARDRAILS, FailureCode
from holdfast_shared.judgement import Judgement, Verdict, judge
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import Window


class Breach(NamedTuple):
    code: FailureCode
    detail: str


def breach_of(release: Release, window: Window) -> Breach | None:
    """The first guardrail with the action `fall_back` that `window` breaches beyond doubt."""
    for guardrail in release.guardrails:
        if guardrail.action != "fall_back" or guardrail.metric not in GUARDRAILS:
            continue
        found = judge(guardrail.metric, guardrail.threshold, window, guardrail.requests_min)
        if found.verdict is Verdict.FAIL:
            return Breach(GUARDRAILS[guardrail.metric], _said(found))
    return None


def _said(found: Judgement) -> str:
    return (
        f"{found.metric}: {found.bad} of {found.requests} requests are bad where {found.allowed:g} of all may be "
        f"(threshold {found.threshold:g}, chance {found.chance:.1e})"
    )
