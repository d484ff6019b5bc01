"""Whether a release that only shadows agrees with what serves: one device's rows against the floor that its rollout gave.

It passes on enough rows over enough hours, with the floor kept; it fails when fewer rows agree than chance explains. All else
is `insufficient`: a shadow that was asked little says little.
"""

from __future__ import annotations

from typing import Final

from holdfast_shared.binomial import upper_tail
from holdfast_shared.judgement import FALSE_ALARM, Judgement, Verdict
from holdfast_shared.wire.command import ShadowPlan

METRIC: Final = "agreement"
HOUR_US: Final = 3600 * 1_000_000


def judged(asked: ShadowPlan, *, compared: int, agreed: int, watched_us: int) -> Judgement:
    """The verdict on so many rows of one device, told of in windows that cover `watched_us`."""
    bad, allowed = compared - agreed, 1 - asked.agreement_min
    chance = upper_tail(bad, compared, allowed)
    verdict = Verdict.INSUFFICIENT
    if compared >= asked.rows_min:
        if chance < FALSE_ALARM and bad >= 2:
            verdict = Verdict.FAIL
        elif watched_us >= asked.hours_min * HOUR_US and agreed >= asked.agreement_min * compared:
            verdict = Verdict.PASS
    return Judgement(
        verdict=verdict,
        metric=METRIC,
        threshold=asked.agreement_min,
        requests=compared,
        bad=bad,
        allowed=allowed,
        chance=chance,
    )
