"""A day's bytes on a metered network: what was spent, what is left, when the next day begins by the device's own calendar."""

from __future__ import annotations

from datetime import datetime, time, timedelta, tzinfo
from typing import Annotated, Final

import msgspec

SECOND_US: Final = 1_000_000


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """`day` is an ISO date. Never less than what crossed the wire that day, and little more."""

    day: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


NOTHING_SPENT: Final = Spent(day="")


def on_day(spent: Spent, day: str) -> Spent:
    """What was spent on that day: another day than the one on record begins with nothing, also when a clock was set back."""
    return spent if spent.day == day else Spent(day=day)


def left_bytes(spent: Spent, bytes_per_day: int) -> int:
    return max(0, bytes_per_day - spent.size_bytes)


def with_more(spent: Spent, size_bytes: int) -> Spent:
    """With more bytes spent, or (negative) some given back that were set aside and not needed."""
    return msgspec.structs.replace(spent, size_bytes=max(0, spent.size_bytes + size_bytes))


def day_of(at_us: int, zone: tzinfo) -> str:
    return _local(at_us, zone).date().isoformat()


def until_next_day_s(at_us: int, zone: tzinfo) -> float:
    """To the next midnight on the wall; a day with a change of clocks has 23 or 25 hours."""
    local = _local(at_us, zone)
    midnight = datetime.combine(local.date() + timedelta(days=1), time(), zone)
    return max(1.0, midnight.timestamp() - at_us / SECOND_US)


def _local(at_us: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(at_us / SECOND_US, zone)
