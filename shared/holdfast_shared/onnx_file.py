"""Whether a file is an ONNX model, and the names of its inputs and outputs: enough to refuse a mistake before it is uploaded.

ONNX is one protobuf message; only its outermost fields and the graph's are walked, so no ONNX package is needed and a
hostile file costs a bounded scan. Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers below).
Whether it *works* is the worker's business: it loads the verified bytes in a process of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_shared.errors import Malformed

# ModelProto
_IR_VERSION: Final = 1
_GRAPH: Final = 7
_OPSET_IMPORT: Final = 8
# GraphProto
_INITIALIZER: Final = 5
_INPUT: Final = 11
_OUTPUT: Final = 12
# ValueInfoProto.name, and TensorProto.name
_VALUE_NAME: Final = 1
_TENSOR_NAME: Final = 8
# protobuf wire types
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_VARINT_BYTES_MAX: Final = 10


class Names(NamedTuple):
    """What the graph is asked with, and what it answers."""

    inputs: frozenset[str]
    outputs: frozenset[str]


class _Span(NamedTuple):
    start: int
    end: int


def names_in(path: Path) -> Names:
    """The graph's inputs (those without a stored value) and outputs. Raises Malformed when it is not an ONNX model."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            raise Malformed("is empty, not an ONNX model")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _names(data)
            except (ValueError, IndexError) as error:
                raise Malformed(f"is not an ONNX model: {error}") from error


def _names(data: mmap.mmap) -> Names:
    graph: _Span | None = None
    seen: set[int] = set()
    for number, value in _fields(data, _Span(0, len(data))):
        seen.add(number)
        if number == _GRAPH and isinstance(value, _Span):
            graph = value
    if graph is None or not {_IR_VERSION, _OPSET_IMPORT} <= seen:
        raise ValueError("it has no IR version, operator set and graph")
    named: dict[int, set[str]] = {_INITIALIZER: set(), _INPUT: set(), _OUTPUT: set()}
    for number, value in _fields(data, graph):
        if number in named and isinstance(value, _Span):
            field = _TENSOR_NAME if number == _INITIALIZER else _VALUE_NAME
            named[number] |= {
                data[inner.start : inner.end].decode()
                for tag, inner in _fields(data, value)
                if tag == field and isinstance(inner, _Span)
            }
    if not named[_OUTPUT]:
        raise ValueError("its graph has no output")
    return Names(frozenset(named[_INPUT] - named[_INITIALIZER]), frozenset(named[_OUTPUT]))


def _fields(data: mmap.mmap, span: _Span) -> Iterator[tuple[int, int | _Span]]:
    """(field number, integer or where its bytes lie) of one message. Raises ValueError when it is no protobuf."""
    position = span.start
    while position < span.end:
        tag, position = _varint(data, position, span.end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field number is 0")
        if kind == _VARINT:
            value, position = _varint(data, position, span.end)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position, span.end)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is not used by protobuf 3")
        if position + length > span.end:
            raise ValueError("a field runs past the end: is the file cut off?")
        yield number, _Span(position, position + length)
        position += length


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if position >= end:
            raise ValueError("a number runs past the end: is the file cut off?")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:  # the continuation bit
            return value, position
    raise ValueError("a number is longer than 64 bits")
