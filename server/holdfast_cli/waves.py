"""Waves and gates as they are written on the command line: `5% region=eu-west, ring=canary` and `latency_ms_p99=50`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, get_args

import msgspec

from holdfast_shared import cohort, selector
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.command import GatePlan, WavePlan
from holdfast_shared.wire.release import Metric

GATE_METRICS: Final = get_args(Metric)
_PERCENTAGE: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?%")
_WAVE_HINT: Final = "write it like: --wave '5%' or --wave '100% region in (eu-west, us-east), ring=canary'"
_SHARES_HINT: Final = "write it like: --request-shares 1%,5%,20%,100%"
_REQUESTS: Final = re.compile(r"(?:^|\s*,\s*|\s)requests=([^\s,]*%)\s*$")
_GATE_HINT: Final = "write it like: --gate latency_ms_p99=50 or --gate error_rate=0.02"


def segment(text: str, option: str = "--segment") -> tuple[selector.Term, ...]:
    """A written selector. Raises Malformed that names `option`."""
    try:
        return selector.parse(text)
    except Malformed as error:
        raise Malformed(error.message, field=option, next_step=error.next_step) from error


def waves(texts: Sequence[str], request_shares: str | None) -> tuple[WavePlan, ...]:
    """Those that are written out, or one for each share of the requests of all devices."""
    if request_shares is None:
        return tuple(wave(text) for text in texts)
    if texts:
        raise Malformed(
            "waves of devices and shares of all devices' requests are two ways to walk",
            field="--request-shares",
            next_step="leave one out, or write the share into its wave: --wave '100% ring=canary, requests=5%'",
        )
    shares = [_share(part.strip(), "--request-shares", _SHARES_HINT) for part in request_shares.split(",")]
    return tuple(WavePlan(share=cohort.BUCKETS, requests=share) for share in shares)


def request_segment(text: str | None) -> Requests | None:
    """Which requests the shares are of; each wave says its own."""
    if text is None:
        return None
    return Requests(share=cohort.BUCKETS, segment=segment(text, "--request-segment"))


def wave(text: str) -> WavePlan:
    """A share of the devices, and after it, if not all are meant, the regions and labels, and the share of their requests."""
    given = _REQUESTS.search(text)  # no label: a label's value has no per cent sign
    requests = _share(given[1], "--wave", _WAVE_HINT) if given else None
    share, _, rest = (text[: given.start()] if given else text).strip().partition(" ")
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
    return WavePlan(share=_share(share, "--wave", _WAVE_HINT), regions=regions, labels=labels, requests=requests)


def gate(text: str) -> GatePlan:
    """A metric and the threshold that it must not pass."""
    metric, equals, threshold = (part.strip() for part in text.partition("="))
    if not equals or metric not in GATE_METRICS:
        raise Malformed(
            f"{text!r} is no gate; metrics are {', '.join(GATE_METRICS)}", field="--gate", next_step=_GATE_HINT
        )
    try:
        value = float(threshold)
        if not math.isfinite(value):
            raise ValueError(threshold)
        return msgspec.convert({"metric": metric, "threshold": value}, GatePlan)
    except (ValueError, msgspec.ValidationError) as error:
        raise Malformed(f"{threshold!r} is no threshold", field="--gate", next_step=_GATE_HINT) from error


def _share(text: str, option: str, hint: str) -> int:
    """`5%` → 500 of 10 000."""
    parts = Decimal(text[:-1]) * (cohort.BUCKETS // 100) if _PERCENTAGE.fullmatch(text) else Decimal(0)
    if not 0 < parts <= cohort.BUCKETS or parts != int(parts):
        raise Malformed(
            f"{text!r} is no share: a percentage above 0% up to 100%, in steps of 0.01%",
            field=option,
            next_step=hint,
        )
    return int(parts)
