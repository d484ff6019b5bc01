"""Parts of a day in which a device may download, or switch, by the clock on its own wall.

Asked of an instant, never computed ahead: what the wall says then decides. So an hour that a change of clocks skips has no
window in it, and one that it repeats has it twice; a clock that is set is heeded within a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Final

from holdfast_shared.wire.assignment import TimeSpan

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def is_open(spans: Sequence[TimeSpan], at_us: int, zone: tzinfo) -> bool:
    """Whether that moment lies in one of the spans; without any it always does."""
    return not spans or any(_holds(span, datetime.fromtimestamp(at_us / SECOND_US, zone)) for span in spans)


def next_minute_us(at_us: int) -> int:
    """How long until the wall shows another minute: no window opens or closes before."""
    return MINUTE_US - at_us % MINUTE_US


def written(spans: Sequence[TimeSpan]) -> str:
    """For people: `22:00-04:00, Sat Sun 00:00-00:00`."""
    return ", ".join(" ".join((*_days(span), f"{span.from_}-{span.to}")) for span in spans)


def _holds(span: TimeSpan, local: datetime) -> bool:
    """A span past midnight belongs to the day on which it began."""
    begin, end, now = _minutes(span.from_), _minutes(span.to), local.hour * 60 + local.minute
    today, yesterday = local.weekday() in span.days, (local.weekday() - 1) % 7 in span.days
    if begin < end:
        return today and begin <= now < end
    return (today and now >= begin) or (yesterday and now < end)


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


def _days(span: TimeSpan) -> list[str]:
    return [] if len(set(span.days)) == len(_DAYS) else [_DAYS[day] for day in sorted(set(span.days))]
