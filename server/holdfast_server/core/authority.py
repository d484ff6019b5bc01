"""Who may answer a failure: where the trigger is objective the server acts at once, where judgement is needed people do."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from holdfast_shared import failure_codes


class Authority(StrEnum):
    AUTOMATIC = "automatic"
    MANUAL = "manual"


# A device's own word without a code: it judged by the release's own rules.
_WITHOUT_CODE: Final = frozenset({"condemned_here", "fell_back", "self_test_failed"})
# The release's own conduct, measured on the device, or a gate's metric. Everything else (a full disk, a bad network, drift,
# which may be the data) is somebody's judgement.
_AUTOMATIC: Final = failure_codes.OBJECTIVE | failure_codes.GUARDRAILS.keys() | _WITHOUT_CODE


def authority_of(mode: str) -> Authority:
    """The authority over a failure mode: a stable failure code, or the metric of a gate. Unknown ones are for people."""
    return Authority.AUTOMATIC if mode in _AUTOMATIC else Authority.MANUAL
