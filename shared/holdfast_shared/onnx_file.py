"""Whether a file is an ONNX model, and its inputs and outputs: enough to refuse a mistake before it is uploaded.

ONNX is one protobuf message; only its outermost fields, the graph's and its tensors' types are walked, so no ONNX package is
needed and a hostile file costs a bounded scan. Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers
below).
Whether it *works* is the worker's business: it loads the verified bytes in a process of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_shared.errors import Malformed
from holdfast_shared.tensor_forms import FileTensor, FileTensors
from holdfast_shared.wire.release import Datatype

# ModelProto
_IR_VERSION: Final = 1
_GRAPH: Final = 7
_OPSET_IMPORT: Final = 8
# GraphProto
_INITIALIZER: Final = 5
_INPUT: Final = 11
_OUTPUT: Final = 12
# ValueInfoProto, and TensorProto.name
_VALUE_NAME: Final = 1
_VALUE_TYPE: Final = 2
_TENSOR_NAME: Final = 8
# TypeProto.tensor_type, its element type and shape; a shape's dimensions, and the size that one has
_TENSOR_TYPE: Final = 1
_ELEMENT: Final = 1
_SHAPE: Final = 2
_DIMENSION: Final = 1
_SIZE: Final = 1
# protobuf wire types
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_VARINT_BYTES_MAX: Final = 10
_NEGATIVE: Final = 1 << 63
# TensorProto.DataType
_DATATYPES: Final[dict[int, Datatype]] = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
}


class _Span(NamedTuple):
    start: int
    end: int


def tensors_in(path: Path) -> FileTensors:
    """The graph's inputs (those without a stored value) and outputs. Raises Malformed when it is not an ONNX model."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            raise Malformed("is empty, not an ONNX model")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _tensors(data)
            except (ValueError, IndexError) as error:
                raise Malformed(f"is not an ONNX model: {error}") from error


def _tensors(data: mmap.mmap) -> FileTensors:
    graph: _Span | None = None
    seen: set[int] = set()
    for number, value in _fields(data, _Span(0, len(data))):
        seen.add(number)
        if number == _GRAPH and isinstance(value, _Span):
            graph = value
    if graph is None or not {_IR_VERSION, _OPSET_IMPORT} <= seen:
        raise ValueError("it has no IR version, operator set and graph")
    stored: set[str] = set()
    found: dict[int, list[FileTensor]] = {_INPUT: [], _OUTPUT: []}
    for number, value in _fields(data, graph):
        if number == _INITIALIZER and isinstance(value, _Span):
            stored |= {_text(data, name) for name in _messages(data, value, _TENSOR_NAME)}
        elif number in found and isinstance(value, _Span):
            found[number].append(_described(data, value))
    if not found[_OUTPUT]:
        raise ValueError("its graph has no output")
    return FileTensors(tuple(one for one in found[_INPUT] if one.name not in stored), tuple(found[_OUTPUT]))


def _described(data: mmap.mmap, value: _Span) -> FileTensor:
    name = "".join(_text(data, one) for one in _messages(data, value, _VALUE_NAME))
    for kind in _messages(data, value, _VALUE_TYPE):
        for tensor in _messages(data, kind, _TENSOR_TYPE):
            element = next((n for field, n in _fields(data, tensor) if field == _ELEMENT and isinstance(n, int)), 0)
            shape = next((_sizes(data, one) for one in _messages(data, tensor, _SHAPE)), None)
            return FileTensor(name, _DATATYPES.get(element), shape)
    return FileTensor(name, None, None)


def _sizes(data: mmap.mmap, shape: _Span) -> tuple[int, ...]:
    """A dimension that has a name, or nothing, is one of any size; so is a negative one, which a varint has as 2⁶⁴ − n."""
    sizes = []
    for dimension in _messages(data, shape, _DIMENSION):
        size = next((n for field, n in _fields(data, dimension) if field == _SIZE and isinstance(n, int)), -1)
        sizes.append(size if size < _NEGATIVE else -1)
    return tuple(sizes)


def _messages(data: mmap.mmap, span: _Span, number: int) -> Iterator[_Span]:
    return (value for field, value in _fields(data, span) if field == number and isinstance(value, _Span))


def _text(data: mmap.mmap, span: _Span) -> str:
    return data[span.start : span.end].decode()


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
