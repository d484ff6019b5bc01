"""What the API says in identifiers, as the page says it in words."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from holdfast_shared import selector, strict_json
from holdfast_shared.judgement import FLOORS

_MB: Final = 1_000_000
_DIGEST_SHOWN: Final = 19  # `sha256:` and twelve digits
METRICS: Final = {
    "latency_ms_p99": "p99 latency",
    "error_rate": "errors",
    "null_rate": "nulls",
    "accuracy_proxy": "right predictions",
    "drift": "drift",
    "memory_bytes": "memory of its worker",
    "agreement": "rows that agree with what serves",
    "device": "devices that left it",
}


def threshold(metric: str, value: Any) -> str:
    """A gate's threshold with its unit."""
    if not isinstance(value, int | float) or metric == "device":
        return ""
    if metric == "latency_ms_p99":
        return f"≤ {value:g} ms"
    if metric == "drift":  # an index
        return f"≤ {value:g}"
    if metric == "memory_bytes":
        return f"≤ {value / _MB:.1f} MB" if value >= _MB else f"≤ {value:,.0f} bytes"
    return f"{'≥' if metric in FLOORS else '≤'} {100 * value:g} %"


def segment(value: Any) -> str:
    """A segment as people write it, whichever way the API gives it."""
    terms = () if isinstance(value, str) else strict_json.stored(msgspec.json.encode(value), tuple[selector.Term, ...])
    text = value if isinstance(value, str) else selector.written(terms)
    return "whole fleet" if text == "*" else text


def digest(value: Any) -> str:
    """Of a digest, as much as people compare by eye."""
    return str(value or "")[:_DIGEST_SHOWN]


def version_of(release: Any) -> str:
    """The version of `{version, digest}`, of a bare version, or of nothing."""
    if isinstance(release, dict):
        return str(release.get("version") or "")
    return str(release or "")
