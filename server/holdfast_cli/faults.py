"""Every fault of a table against the type it should have, each with its path as written in the file: `model.metrics`.

msgspec stops at the first wrong field; a person who corrects a file wants them all.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from typing import Any, Final, NamedTuple

import msgspec

from holdfast_shared.identifiers import DIGEST_PATTERN, ENVIRONMENT_PATTERN, NAME_PATTERN, TENSOR_PATTERN
from holdfast_shared.semver import VERSION_PATTERN

# What a pattern means, for a person.
_IN_WORDS: Final = {
    NAME_PATTERN: "a name of lower-case letters, digits and `-`, at most 63",
    DIGEST_PATTERN: "`sha256:` and 64 lower-case hex digits",
    ENVIRONMENT_PATTERN: "`system` or a digest",
    TENSOR_PATTERN: "a tensor name: letters, digits, `_ . : / -`, no space",
    VERSION_PATTERN: "a SemVer 2.0.0 version such as 1.10.0",
}


class Fault(NamedTuple):
    """`supported` False: well-formed, but reserved for later."""

    path: str
    words: str
    supported: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.words}"


def of_table(table: Any, kind: type[msgspec.Struct], path: str = "") -> list[Fault]:
    """Every fault of `table` as a `kind`, nested tables and arrays of tables included; empty when it converts."""
    if not isinstance(table, dict):
        return [Fault(path, f"expected a table, found {table!r:.60}")]
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    found = [_unknown(name, list(fields), path) for name in table if name not in fields]
    for name, field in fields.items():
        here = _join(path, name)
        if name in table:
            found += _of_value(table[name], field.type, here)
        elif field.required:
            found.append(Fault(here, "is missing"))
    if found:
        return found
    try:  # what only the whole can tell: a rule between two fields
        msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        return [Fault(path, _in_words(error))]
    return []


def _of_value(value: Any, kind: Any, path: str) -> list[Fault]:
    kind, items = _inside(kind)
    if items is not None and isinstance(value, list):
        nested = [fault for i, item in enumerate(value) for fault in of_table(item, items, f"{path}[{i}]")]
        if nested:
            return nested
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return of_table(value, kind, path)
    if _holds_no_number(value):
        return [Fault(path, "holds nan or inf; write a finite number")]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [Fault(path, _in_words(error))]
    return []


def _inside(kind: Any) -> tuple[Any, type[msgspec.Struct] | None]:
    """(the type, or the struct in `Struct | None`; the struct of the items when it is an array of tables)."""
    bare = kind.__origin__ if typing.get_origin(kind) is typing.Annotated else kind
    if typing.get_origin(bare) in (types.UnionType, typing.Union):
        structs = [
            member
            for member in typing.get_args(bare)
            if isinstance(member, type) and issubclass(member, msgspec.Struct)
        ]
        return (structs[0], None) if structs else (kind, None)
    arguments = typing.get_args(bare)
    if typing.get_origin(bare) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        item = arguments[0]
        if isinstance(item, type) and issubclass(item, msgspec.Struct):
            return kind, item
    return kind, None


def _unknown(name: str, known: list[str], path: str) -> Fault:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}"
    return Fault(_join(path, name), f"is no field here{meant}")


def _holds_no_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_holds_no_number(item) for item in value.values())
    return isinstance(value, list) and any(_holds_no_number(item) for item in value)


def _in_words(error: msgspec.ValidationError) -> str:
    message, _, where = str(error).partition(" - at `")
    for pattern, words in _IN_WORDS.items():
        message = message.replace(f"`str` matching regex {pattern!r}", words)
    key = where.rstrip("`").removeprefix("$")
    return f"{message[0].lower()}{message[1:]}" + (f" (at {key})" if key and key != "key" else "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
