"""The server's clocks. Everything that decides is given a Moment; only edges ask here."""

from __future__ import annotations

import time

from holdfast_server.core.rollout import Moment


def now_us() -> int:
    """Wall time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def moment() -> Moment:
    """Now, on the wall and on this machine's monotonic clock."""
    return Moment(at=now_us(), monotonic_us=time.monotonic_ns() // 1000)
