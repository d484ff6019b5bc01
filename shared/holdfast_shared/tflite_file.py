"""Whether a file is a whole TFLite model, and its tensors: enough to refuse a mistake, or a file that was cut off.

TFLite is one flatbuffer. Its tables are walked by hand: neither server nor worker needs the schema package, and a hostile file
costs a bounded walk. It is also what keeps a damaged file from `tflite-runtime`, which computes on one, or dies of it.
Source: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs (places of fields below).
Only the first graph is asked by a runtime; a tensor is called by its name in the graph, not by that of a signature.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_shared.errors import Malformed
from holdfast_shared.tensor_forms import FileTensor, FileTensors
from holdfast_shared.wire.release import Datatype

_IDENTIFIER: Final = b"TFL3"
_IDENTIFIER_AT: Final = 4
# Model
_OPERATOR_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4
# SubGraph
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3
# Tensor
_SHAPE, _TYPE, _BUFFER, _NAME, _SIGNATURE = 0, 1, 2, 3, 7
# Operator
_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2
# Buffer: its data here, or (in a file beyond 2 GiB) behind the flatbuffer
_DATA, _DATA_AT, _DATA_BYTES = 0, 1, 2
# The largest models we know have some ten thousand tensors.
_ITEMS_MAX: Final = 1 << 18
_NAME_BYTES_MAX: Final = 4096
_ABSENT: Final = -1  # an operator's input that may be left out

_DATATYPES: Final[dict[int, Datatype]] = {
    0: "FP32",
    1: "FP16",
    2: "INT32",
    3: "UINT8",
    4: "INT64",
    5: "BYTES",
    6: "BOOL",
    7: "INT16",
    9: "INT8",
    10: "FP64",
    12: "UINT64",
    15: "UINT32",
    16: "UINT16",
}

Data = bytes | mmap.mmap


def tensors_in(path: Path) -> FileTensors:
    """What the graph is asked with and answers. Raises Malformed when it is no TFLite model, or not a whole one."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            raise Malformed("is empty, not a TFLite model")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return tensors_of(data)


def tensors_of(data: Data) -> FileTensors:
    """The same of bytes in memory."""
    try:
        return _tensors(data)
    except (ValueError, IndexError, struct.error) as error:
        raise Malformed(f"is not a TFLite model: {error}") from error


def _tensors(data: Data) -> FileTensors:
    if data[_IDENTIFIER_AT : _IDENTIFIER_AT + len(_IDENTIFIER)] != _IDENTIFIER:
        raise ValueError(f"it does not have the mark {_IDENTIFIER.decode()} in its first 8 bytes")
    model = _Table(data, _unsigned(data, 0))
    buffers = sum(1 for buffer in model.tables(_BUFFERS) if _is_whole(buffer))
    codes = sum(1 for _ in model.tables(_OPERATOR_CODES))
    graphs = [_graph(graph, codes, buffers) for graph in model.tables(_SUBGRAPHS)]
    if not graphs:
        raise ValueError("it has no graph")
    if not graphs[0].outputs:
        raise ValueError("its graph has no output")
    return graphs[0]


def _graph(graph: _Table, codes: int, buffers: int) -> FileTensors:
    tensors = [_tensor(table, buffers) for table in graph.tables(_TENSORS)]
    for operator in graph.tables(_OPERATORS):
        if operator.unsigned(_CODE) >= codes:
            raise ValueError(f"an operator has the code {operator.unsigned(_CODE)} of {codes}")
        for place in (*operator.integers(_OPERATOR_INPUTS), *operator.integers(_OPERATOR_OUTPUTS)):
            if not _ABSENT <= place < len(tensors):
                raise ValueError(f"an operator uses tensor {place} of {len(tensors)}")
    return FileTensors(
        tuple(_named(tensors, place) for place in graph.integers(_INPUTS)),
        tuple(_named(tensors, place) for place in graph.integers(_OUTPUTS)),
    )


def _named(tensors: list[FileTensor], place: int) -> FileTensor:
    if not 0 <= place < len(tensors):
        raise ValueError(f"the graph names tensor {place} of {len(tensors)}")
    return tensors[place]


def _tensor(table: _Table, buffers: int) -> FileTensor:
    if table.unsigned(_BUFFER) >= max(buffers, 1):
        raise ValueError(f"a tensor has buffer {table.unsigned(_BUFFER)} of {buffers}")
    # The signature has -1 for a dimension of any size; in `shape` the converter writes 1 for it.
    shape = table.integers(_SIGNATURE) or table.integers(_SHAPE)
    return FileTensor(table.text(_NAME), _DATATYPES.get(table.octet(_TYPE)), tuple(max(size, -1) for size in shape))


def _is_whole(buffer: _Table) -> bool:
    buffer.vector(_DATA, 1)
    at, size = buffer.long(_DATA_AT), buffer.long(_DATA_BYTES)
    if at > 1 and at + size > len(buffer.data):
        raise ValueError("a tensor's data runs past the end: is the file cut off?")
    return True


class _Span(NamedTuple):
    start: int
    items: int


class _Table:
    """One table: its fields by place, everything checked to lie in the file."""

    __slots__ = ("_at", "_fields", "_size", "data")

    def __init__(self, data: Data, at: int) -> None:
        self.data = data
        self._at = at
        self._fields = at - int(struct.unpack_from("<i", data, _in_file(data, at, 4))[0])
        self._size = _short(data, self._fields)
        _in_file(data, self._fields, self._size)
        _in_file(data, at, _short(data, self._fields + 2))

    def octet(self, place: int) -> int:
        at = self._field(place)
        return self.data[_in_file(self.data, at, 1)] if at else 0

    def unsigned(self, place: int) -> int:
        at = self._field(place)
        return _unsigned(self.data, at) if at else 0

    def long(self, place: int) -> int:
        at = self._field(place)
        return int(struct.unpack_from("<Q", self.data, _in_file(self.data, at, 8))[0]) if at else 0

    def text(self, place: int) -> str:
        span = self.vector(place, 1)
        if span.items > _NAME_BYTES_MAX:
            raise ValueError(f"a name has {span.items} bytes")
        _in_file(self.data, span.start, span.items + 1 if span.start else 0)  # with the zero behind it
        return self.data[span.start : span.start + span.items].decode()

    def integers(self, place: int) -> tuple[int, ...]:
        span = self.vector(place, 4)
        return struct.unpack_from(f"<{_few(span.items)}i", self.data, span.start) if span.items else ()

    def tables(self, place: int) -> Iterator[_Table]:
        span = self.vector(place, 4)
        for index in range(_few(span.items)):
            at = span.start + 4 * index
            yield _Table(self.data, at + _unsigned(self.data, at))

    def vector(self, place: int, item_bytes: int) -> _Span:
        at = self._field(place)
        if not at:
            return _Span(0, 0)
        at += _unsigned(self.data, at)
        count = _unsigned(self.data, at)
        _in_file(self.data, at + 4, count * item_bytes)
        return _Span(at + 4, count)

    def _field(self, place: int) -> int:
        entry = 4 + 2 * place
        if entry + 2 > self._size:
            return 0
        offset = _short(self.data, self._fields + entry)
        return self._at + offset if offset else 0


def _few(count: int) -> int:
    if count > _ITEMS_MAX:
        raise ValueError(f"it lists {count} of something; at most {_ITEMS_MAX} are looked at")
    return count


def _in_file(data: Data, at: int, size: int) -> int:
    if at < 0 or at + size > len(data):
        raise ValueError("a field runs past the end: is the file cut off?")
    return at


def _short(data: Data, at: int) -> int:
    return int(struct.unpack_from("<H", data, _in_file(data, at, 2))[0])


def _unsigned(data: Data, at: int) -> int:
    return int(struct.unpack_from("<I", data, _in_file(data, at, 4))[0])
