"""Times, shares and evidence as the page writes them. Ages are worked out in the browser: they stay true."""

from __future__ import annotations

import json
from datetime import UTC, datetime


def iso(at_us: object) -> str:
    """Wall time in microseconds as ISO 8601 in UTC, or an empty text."""
    if not isinstance(at_us, int) or at_us <= 0:
        return ""
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def percent(share: object) -> str:
    """A share of 1 as per cent, never rounded to a certainty it is not."""
    if not isinstance(share, int | float):
        return "–"
    value = share * 100
    if 0 < value < 1:
        return "<1 %"
    if 99 < value < 100:
        return ">99 %"
    return f"{value:.0f} %"


def as_json(value: object) -> str:
    """Evidence to be read by people; the template escapes it."""
    return json.dumps(value, ensure_ascii=False, indent=2)
