"""What must be true of a run, in words: pure, so that a test can spoil each number and see it missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from demonstration.digits import BAD

# A rollback is to be over far sooner than fifteen minutes; here each part has to be over in one.
ROLLBACK_S_MAX: Final = 60.0


def missed(
    summary: Mapping[str, Any], *, segment_devices: int, serving: Mapping[str, str], wanted: Mapping[str, str]
) -> list[str]:
    """Every expectation that did not come true. `serving` and `wanted`: versions by device, on its disk and as it should be."""
    requests, bad, back = summary["requests"], summary["bad_release"], summary["segment_rollback"]
    expectations = (
        (requests["sent"] > 0, "no request was sent"),
        (requests["failed"] == 0, f"{requests['failed']} requests failed"),
        (requests["failed_over"] > 0, f"no request failed over, though {BAD} answered null"),
        (bad["activated"] > 0, f"no device activated {BAD}"),
        (bad["outside_cohort"] == 0, f"{bad['outside_cohort']} devices outside the cohort activated {BAD}"),
        (bad["cohort"] < len(wanted), f"{BAD} reached the whole fleet"),
        (bad["local_fallback_ms"] is not None, "no real device fell back by itself"),
        (bad["evidence"]["real"] > 0, "the halt rested on no real device"),
        (_soon(bad["breach_to_halt_s"]), "the halt came late"),
        (_soon(bad["halt_to_fleet_back_s"]), "the fleet came back late"),
        (back["devices"] == segment_devices, f"{back['devices']} of the segment's {segment_devices} were taken back"),
        (_soon(back["max_s"]), "the segment came back late"),
        (back["outside_segment"] == 0, f"{back['outside_segment']} devices outside the segment moved"),
        (not summary["kills"]["worker"]["failed"], "requests failed when workers were killed"),
        (not summary["kills"]["agent"]["failed"], "requests failed when an agent was killed"),
        (serving == wanted, "the devices' own records do not hold what they should serve"),
    )
    return [text for held, text in expectations if not held]


def _soon(seconds: float | None) -> bool:
    return seconds is not None and 0 <= seconds <= ROLLBACK_S_MAX
