"""The device's two clocks, and which boot their monotonic one counts from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from holdfast_agent.core.events import Moment

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def now() -> Moment:
    return Moment(at=time.time_ns() // 1_000, monotonic_us=time.monotonic_ns() // 1_000)


def boot_id() -> str:
    """This boot of the kernel: monotonic times of one boot may be compared, also between processes."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
