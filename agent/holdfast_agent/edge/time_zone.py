"""The device's time zone, for windows and days: one that is named, or the system's own."""

from __future__ import annotations

from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_SYSTEM: Final = Path("/etc/localtime")


def load(name: str) -> tzinfo:
    """Raises nothing for a name that `is_known`. A system that says nothing is in UTC."""
    if name:
        return ZoneInfo(name)
    try:
        with _SYSTEM.open("rb") as stream:
            return ZoneInfo.from_file(stream, key="localtime")
    except (OSError, ValueError):
        return UTC


def is_known(name: str) -> bool:
    try:
        load(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
