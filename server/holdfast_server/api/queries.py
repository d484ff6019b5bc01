"""What a request asks, parsed: names and digests in its address, and what stands after the question mark."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from flask import request

from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import DEVICE_PATTERN, DIGEST_PATTERN, NAME_PATTERN, DeviceId, Digest

# A page of the list of devices; the page's picture of the fleet draws as many.
DEVICES_MAX: Final = 2_000
DEVICES_DEFAULT: Final = 100
DECISIONS_MAX: Final = 1_000
DECISIONS_DEFAULT: Final = 50
# A written selector at its limits is longer than any address should be; this one fits.
TEXT_LENGTH_MAX: Final = 4_096


class Page(NamedTuple):
    segment: str
    after: str | None
    limit: int


def check_printable() -> None:
    """Raises Malformed for an address or a parameter with control characters: no name has them, and no database wants them."""
    for where, value in (("address", request.path), *request.args.items()):
        if not value.isprintable():
            raise Malformed(f"it has control characters: {value[:64]!r}", field=where[:64], next_step="leave them out")


def check_names(*known: str) -> None:
    """Raises Malformed for a parameter that the address does not have: a misspelt filter must not show everything."""
    for name, value in request.args.items():
        if name not in known:
            raise Malformed(
                f"there is no parameter {name[:64]!r}",
                field=name[:64],
                next_step=f"use {', '.join(known)}" if known else "leave it out",
            )
        if len(value) > TEXT_LENGTH_MAX:
            raise Malformed(
                f"it has {len(value)} characters; at most {TEXT_LENGTH_MAX} are allowed",
                field=name,
                next_step="ask for less at once",
            )


def text(name: str) -> str | None:
    return request.args.get(name)


def needed(name: str) -> str:
    value = request.args.get(name)
    if not value:
        raise Malformed("it is missing", field=name, next_step=f"add ?{name}=…")
    return value


def number(name: str, *, default: int | None, least: int, most: int) -> int | None:
    """Raises Malformed outside of its bounds."""
    value = request.args.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > len(str(most)) or not least <= int(value) <= most:
        raise Malformed(
            f"{value[:32]!r} is no number from {least} to {most}", field=name, next_step="give one, or leave it out"
        )
    return int(value)


def devices_page() -> Page:
    check_names("segment", "after", "limit")
    limit = number("limit", default=DEVICES_DEFAULT, least=1, most=DEVICES_MAX)
    return Page(text("segment") or "*", text("after"), limit or DEVICES_DEFAULT)


def digest(value: str) -> Digest:
    if not re.fullmatch(DIGEST_PATTERN, value):
        raise Malformed(
            f"{value[:80]!r} is no digest", field="digest", next_step="write `sha256:` and 64 lower-case hex digits"
        )
    return Digest(value)


def name(value: str, field: str) -> str:
    if not re.fullmatch(NAME_PATTERN, value):
        raise Malformed(
            f"{value[:80]!r} is no name", field=field, next_step="names are lower-case letters, digits, `-`"
        )
    return value


def device(value: str) -> DeviceId:
    if not re.fullmatch(DEVICE_PATTERN, value):
        raise Malformed(
            f"{value[:80]!r} is no device id", field="device", next_step="ids are lower-case letters, digits and `._-`"
        )
    return DeviceId(value)
