"""JSON from elsewhere, read strictly: size, depth, duplicate keys, NaN and types are all checked before anyone sees a value.

msgspec checks the grammar, the text encoding and the types. It keeps the last of two equal keys, so a second pass by the
standard library finds those. Call it after the signature has been verified, never before.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from holdfast_shared.errors import Malformed

T = TypeVar("T")

DEPTH_MAX: Final = 8
_making: Final = threading.Lock()
_decoders: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}  # by type: as many as are read from anywhere
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def encode(value: object) -> bytes:
    """The bytes to sign or send. Equal values give equal bytes (fields in declaration order, keys sorted)."""
    return msgspec.json.encode(value, order="deterministic")


def decode(raw: bytes, kind: type[T], *, what: str, size_bytes_max: int, depth_max: int = DEPTH_MAX) -> T:
    """`raw` as a `kind`. Raises Malformed with the path of the first wrong field; `what` names the document in it."""
    if len(raw) > size_bytes_max:
        raise Malformed(
            f"{what} is {len(raw)} bytes; at most {size_bytes_max} are allowed", next_step="make it smaller"
        )
    _check_depth(raw, what, depth_max)
    try:
        value = _decoder(kind).decode(raw)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").removeprefix(".")
        raise Malformed(f"{what}: {message}", field=field, next_step="correct that field") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON: {error}", next_step="send one JSON object in UTF-8") from error
    _check_duplicates(raw, what)
    return value


def stored(raw: bytes | str, kind: type[T]) -> T:
    """From bytes of our own that were checked before they were kept: types alone. Raises msgspec.DecodeError for a bug of ours.

    Instead of `msgspec.json.decode` wherever several threads may be the first to read a type.
    """
    return _decoder(kind).decode(raw)


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Made by one thread at a time: msgspec 0.22 crashes when two threads are the first to decode into one Struct."""
    with _making:
        found = _decoders.get(kind)
        if found is None:
            found = _decoders[kind] = msgspec.json.Decoder(kind)
        return found


def _check_depth(raw: bytes, what: str, depth_max: int) -> None:
    depth = 0
    for bracket in _brackets(raw):
        depth += 1 if bracket in b"[{" else -1
        if depth > depth_max:
            raise Malformed(f"{what} nests deeper than {depth_max} levels", next_step="flatten it")


def _brackets(raw: bytes) -> bytes:
    """Those outside of strings. Where nothing is escaped, every other quote ends a string: a tenth of a pattern's time."""
    bare = _STRINGS.sub(b"", raw) if b"\\" in raw else b"".join(raw.split(b'"')[::2])
    return bare.translate(None, _NO_BRACKETS)


def _check_duplicates(raw: bytes, what: str) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(
                    f"{what} has the key {key!r} twice in one object", field=key, next_step="keep one of them"
                )
            seen.add(key)

    def constant(name: str) -> NoReturn:
        raise Malformed(f"{what} holds {name}, which JSON does not have", next_step="use a finite number")

    try:
        json.loads(raw, object_pairs_hook=unique, parse_constant=constant)
    except (
        ValueError,
        RecursionError,
    ) as error:  # msgspec accepted it: the two readers disagree, so nobody may trust it
        raise Malformed(f"{what} is not valid JSON: {error}", next_step="send one JSON object in UTF-8") from error
