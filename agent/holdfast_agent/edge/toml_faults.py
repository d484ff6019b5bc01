"""Every fault of a TOML file against the structs that it is to become: each value alone, so that one does not hide the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, get_args, get_origin

import msgspec

# What somebody wrote, in a message of one line.
_FOUND_CHARACTERS_MAX: Final = 60


def of(tables: Mapping[str, Any], kind: type[msgspec.Struct]) -> Iterator[str]:
    """In words, each with its place, such as `[fetch] windows[1].to: …`; nothing when `tables` can become a `kind`."""
    yield from (f"[{name}] is no table here" for name in tables if name not in kind.__struct_fields__)
    for section in msgspec.structs.fields(kind):
        table = tables.get(section.name, {})
        if isinstance(table, Mapping):
            yield from _of_table(f"[{section.name}] ", table, section.type)
        else:
            yield f"{section.name} must be a table"


def _of_table(where: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> Iterator[str]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    yield from (f"{where}{name} is no field here" for name in table if name not in fields)
    for name, field in fields.items():
        if name in table:
            yield from _of_value(f"{where}{name}", table[name], field.type)
        elif field.required:
            yield f"{where}{name} is missing"


def _of_value(where: str, value: object, kind: Any) -> Iterator[str]:
    plain, meta = _taken_apart(kind)
    inner: list[str] = []
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct) and isinstance(value, dict):
        yield from _of_table(f"{where}.", value, plain)
        return
    if get_origin(plain) is tuple and isinstance(value, list):
        inner = [one for at, item in enumerate(value) for one in _of_value(f"{where}[{at}]", item, get_args(plain)[0])]
    elif get_origin(plain) is dict and isinstance(value, dict):
        inner = [one for key, item in value.items() for one in _of_value(f"{where}.{key}", item, get_args(plain)[1])]
    if inner:
        yield from inner
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        yield f"{where}: {_said(error, value, meta)}"


def _said(error: msgspec.ValidationError, value: object, meta: msgspec.Meta | None) -> str:
    """An example says more than a regular expression."""
    found = repr(value)[:_FOUND_CHARACTERS_MAX]
    if meta is not None and meta.examples:
        return f"found {found}, expected such as {' or '.join(map(repr, meta.examples))}"
    return f"{error}, found {found}"


def _taken_apart(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    """A type without its annotations, and the first of them that is msgspec's."""
    if get_origin(kind) is not Annotated:
        return kind, None
    plain, *annotations = get_args(kind)
    return plain, next((one for one in annotations if isinstance(one, msgspec.Meta)), None)
