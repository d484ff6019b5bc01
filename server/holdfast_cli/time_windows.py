"""Windows as they are written on the command line: `22:00-04:00`, or `Sat,Sun 02:00-05:00`, by each device's own clock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from holdfast_shared.errors import Malformed
from holdfast_shared.wire.assignment import TimeSpan, Windows

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WRITTEN: Final = re.compile(r"(?:(?P<days>[A-Za-z]{3}(?:\s*,\s*[A-Za-z]{3})*)\s+)?(?P<from>\S{5})\s*-\s*(?P<to>\S{5})")


def windows(download: Iterable[str], switch: Iterable[str]) -> Windows | None:
    """What both options say together; None when neither was given. Raises Malformed that names the option."""
    found = Windows(
        download=tuple(_span(text, "--download-window") for text in download),
        switch=tuple(_span(text, "--switch-window") for text in switch),
    )
    return found if found != Windows() else None


def _span(text: str, option: str) -> TimeSpan:
    found = _WRITTEN.fullmatch(text.strip())
    days = [day.strip().lower() for day in found["days"].split(",")] if found is not None and found["days"] else DAYS
    try:
        if found is None or not set(days) <= set(DAYS):
            raise ValueError(text)
        numbers = sorted({DAYS.index(day) for day in days})
        return msgspec.convert({"from": found["from"], "to": found["to"], "days": numbers}, TimeSpan)
    except (ValueError, msgspec.ValidationError) as error:
        raise Malformed(
            f"{text!r} is no window",
            field=option,
            next_step=f"write it like: {option} 22:00-04:00 or 'Sat,Sun 02:00-05:00'",
        ) from error
