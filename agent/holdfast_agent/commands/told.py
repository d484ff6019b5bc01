"""What a command found: one object for a program, lines for a person. Commands print nothing themselves."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

State = Literal["ok", "warn", "fail"]


class Told(NamedTuple):
    """`failed`: the command's exit status says so."""

    answer: dict[str, Any]
    lines: list[str]
    failed: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `do` is what helps, empty when it is ok.

    `fail`: it keeps the device from serving or from being kept in step. `warn`: it may be meant so, or become a failure.
    """

    check: str
    state: State
    said: str
    do: str = ""
