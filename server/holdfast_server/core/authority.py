"""Who may answer a failure: where the trigger is objective the server acts at once, where judgement is needed people do."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Authority(StrEnum):
    AUTOMATIC = "automatic"
    MANUAL = "manual"


# The release's own conduct, measured on the device. Everything else (a full disk, a bad network, drift, which may be the
# data) is somebody's judgement.
_AUTOMATIC: Final = frozenset(
    {
        "condemned_here",  # a device's own word without a code: it judged by the release's own rules
        "crash",
        "crash-loop",
        "error_rate",
        "fell_back",
        "guardrail-error-rate",
        "guardrail-latency",
        "guardrail-null-rate",
        "hang",
        "hang-loop",
        "latency_ms_p99",
        "load-deadline",
        "load-failed",
        "model-error",
        "null-output",
        "null_rate",
        "self-test-failed",
        "self_test_failed",
    }
)


def authority_of(mode: str) -> Authority:
    """The authority over a failure mode: a stable failure code, or the metric of a gate. Unknown ones are for people."""
    return Authority.AUTOMATIC if mode in _AUTOMATIC else Authority.MANUAL
