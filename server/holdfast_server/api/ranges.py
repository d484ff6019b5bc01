"""One range of bytes, as RFC 9110 section 14 has it: devices resume a download where it broke off.

What cannot be read, and more than one range, is passed over: the whole is a good answer to it (section 14.2).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from holdfast_shared.errors import HoldfastError

_ONE: Final = re.compile(r"^\s*bytes\s*=\s*(?P<first>[0-9]{0,19})\s*-\s*(?P<last>[0-9]{0,19})\s*$", re.IGNORECASE)


class Span(NamedTuple):
    """Both inclusive."""

    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        return self.last - self.first + 1


class NotSatisfiable(HoldfastError):
    """It begins where the bytes have ended. The device starts anew."""

    code = "range-not-satisfiable"


def parse(header: str | None, size_bytes: int) -> Span | None:
    """The span asked for; None: the whole. Raises NotSatisfiable."""
    found = _ONE.match(header) if header is not None else None
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:  # the last so many
        count = min(int(found["last"]), size_bytes)
        return _within(size_bytes - count, size_bytes - 1, size_bytes)
    first = int(found["first"])
    last = int(found["last"]) if found["last"] else size_bytes - 1
    if found["last"] and last < first:
        return None
    return _within(first, min(last, size_bytes - 1), size_bytes)


def _within(first: int, last: int, size_bytes: int) -> Span:
    if first >= size_bytes or last < first:
        raise NotSatisfiable(
            f"there are {size_bytes} bytes, none from {first} on", field="Range", next_step="ask for the whole"
        )
    return Span(first, last)
