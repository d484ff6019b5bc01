"""Waves and gates as they are written on the command line: `5% region=eu-west, ring=canary` and `latency_ms_p99=50`."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final, get_args

import msgspec

from holdfast_shared import cohort, selector
from holdfast_shared.errors import Malformed, NotSupported
from holdfast_shared.wire.command import GatePlan, WavePlan
from holdfast_shared.wire.release import Metric

GATE_METRICS: Final = ("latency_ms_p99", "error_rate", "null_rate", "accuracy_proxy", "drift")
_PERCENTAGE: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?%")
_WAVE_HINT: Final = "write it like: --wave '5%' or --wave '100% region in (eu-west, us-east), ring=canary'"
_GATE_HINT: Final = "write it like: --gate latency_ms_p99=50 or --gate error_rate=0.02"


def segment(text: str, option: str = "--segment") -> tuple[selector.Term, ...]:
    """A written selector. Raises Malformed that names `option`."""
    try:
        return selector.parse(text)
    except Malformed as error:
        raise Malformed(error.message, field=option, next_step=error.next_step) from error


def wave(text: str) -> WavePlan:
    """A share of the devices, and after it, if not all are meant, the regions and labels."""
    share, _, rest = text.strip().partition(" ")
    regions: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    for term in segment(rest, "--wave"):
        if term.op != "in":
            raise Malformed(
                f"a wave names what is in it, not what is not: {text!r}", field="--wave", next_step=_WAVE_HINT
            )
        if term.label == "region":
            regions += term.values
        elif len(term.values) == 1:
            labels[term.label] = term.values[0]
        else:
            raise Malformed(
                f"a wave names one value of {term.label!r}: {text!r}",
                field="--wave",
                next_step="write one wave for each",
            )
    return WavePlan(share=_share(share), regions=regions, labels=labels)


def gate(text: str) -> GatePlan:
    """A metric and the threshold that it must not pass."""
    metric, equals, threshold = (part.strip() for part in text.partition("="))
    if not equals or metric not in get_args(Metric):
        raise Malformed(
            f"{text!r} is no gate; metrics are {', '.join(GATE_METRICS)}", field="--gate", next_step=_GATE_HINT
        )
    if metric not in GATE_METRICS:
        raise NotSupported(
            f"a gate on {metric} is not supported yet",
            field="--gate",
            next_step=f"use one of {', '.join(GATE_METRICS)}",
        )
    try:
        value = float(threshold)
        if not math.isfinite(value):
            raise ValueError(threshold)
        return msgspec.convert({"metric": metric, "threshold": value}, GatePlan)
    except (ValueError, msgspec.ValidationError) as error:
        raise Malformed(f"{threshold!r} is no threshold", field="--gate", next_step=_GATE_HINT) from error


def _share(text: str) -> int:
    """`5%` → 500 of 10 000."""
    parts = Decimal(text[:-1]) * (cohort.BUCKETS // 100) if _PERCENTAGE.fullmatch(text) else Decimal(0)
    if not 0 < parts <= cohort.BUCKETS or parts != int(parts):
        raise Malformed(
            f"{text!r} is no share: a percentage above 0% up to 100%, in steps of 0.01%",
            field="--wave",
            next_step=_WAVE_HINT,
        )
    return int(parts)
