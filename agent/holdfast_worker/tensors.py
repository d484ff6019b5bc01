"""Tensors between the Open Inference Protocol and numpy: JSON numbers or raw bytes one way, arrays the other.

Source: https://github.com/triton-inference-server/server/tree/main/docs/protocol (binary tensor data extension) and
https://github.com/kserve/open-inference-protocol. Raw bytes are little-endian and row by row; an element of BYTES is its
length (u32, little-endian) and the bytes. In JSON, BYTES are UTF-8 strings, and FP16 is a number: stricter servers refuse
FP16 in JSON, but a self-test's cases are JSON and may have it.

JSON has no NaN and no infinity. Going out they are `null`; the request is counted as null anyway. Coming in, neither they
nor numbers that the datatype cannot hold are accepted; in raw bytes they are, as the application measured them.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast_shared.wire.release import Datatype
from holdfast_worker.failures import InputFault

Array = npt.NDArray[Any]

DTYPES: Final[dict[Datatype, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
# One element in JSON. What msgspec cannot bound (64 bits) numpy refuses with OverflowError.
_ELEMENTS: Final[dict[Datatype, Any]] = {
    "BOOL": bool,
    "UINT8": Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)],
    "UINT16": Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)],
    "UINT32": Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)],
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],
    "INT8": Annotated[int, msgspec.Meta(ge=-(2**7), le=2**7 - 1)],
    "INT16": Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15 - 1)],
    "INT32": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "INT64": int,
    "FP16": float,
    "FP32": float,
    "FP64": float,
    "BYTES": str,
}
# Of raw bytes: a BOOL must be 0 or 1, and BYTES say their lengths themselves.
LOOKED_AT: Final[frozenset[Datatype]] = frozenset({"BOOL", "BYTES"})
# How `struct` packs one. It looks for an overflow itself, in half the time that numpy takes and does not.
_CODES: Final[dict[Datatype, str]] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_NESTED: Final = re.compile(rb"\s*\[\s*\[")
_LENGTH: Final = struct.Struct("<I")
# Smaller outputs are copied into the answer: a memory view of an array costs more than the copy.
COPIED_BYTES_MAX: Final = 32 * 1024


class ModelTensor(NamedTuple):
    """A tensor as a model file declares it. An unknown shape is None; an unknown dimension -1."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...] | None


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether a concrete shape is one that `declared` allows."""
    if len(shape) != len(declared):
        return False
    for size, expected in zip(shape, declared, strict=True):  # noqa: SIM110 - on every request's path: a generator doubles it
        if size != expected and expected != -1:
            return False
    return True


def finite(array: Array) -> bool:
    """Whether every element is. `.all()` would go the long way through numpy's reductions: 8 µs after a model, this 2."""
    return b"\0" not in np.isfinite(array).tobytes()


def from_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: msgspec.Raw) -> Array:
    """`data`, flat or nested as `shape` is, as an array. Raises InputFault that names the tensor."""
    depth = len(shape) if len(shape) > 1 and _NESTED.match(data) else 1
    try:
        values = _decoder(datatype, depth).decode(data)
    except msgspec.DecodeError as error:
        raise InputFault(f"tensor {name}: data of {datatype}: {error}") from error
    if datatype == "BYTES":
        flat, found = _flattened(name, values, depth)
        array = np.empty(len(flat), dtype=object)
        array[:] = [text.encode() for text in flat]
    else:
        array = _numbers(name, datatype, values, depth)
        found = array.shape
    if depth > 1:
        if found != shape:
            raise InputFault(f"tensor {name}: data is nested as {list(found)}, its shape is {list(shape)}")
    elif len(array) != math.prod(shape):
        raise InputFault(f"tensor {name}: data has {len(array)} values, its shape {list(shape)} has {math.prod(shape)}")
    return array.reshape(shape)


class Numbers:
    """Reads so many numbers of one datatype in flat JSON, again and again: what can be known before is."""

    __slots__ = ("_decode", "_dtype", "_pack")

    def __init__(self, datatype: Datatype, count: int) -> None:
        """Of any datatype but BYTES."""
        self._decode = _decoder(datatype, 1).decode
        self._dtype = DTYPES[datatype]
        self._pack = struct.Struct(f"<{count}{_CODES[datatype]}").pack

    def read(self, text: bytes) -> Array | None:
        """None when `text` is something else, or they are more or fewer: why, `from_json` says."""
        try:
            return np.frombuffer(bytearray(self._pack(*self._decode(text))), self._dtype)
        except (msgspec.DecodeError, OverflowError, struct.error):
            return None


def from_bytes(name: str, datatype: Datatype, shape: tuple[int, ...], raw: memoryview) -> Array:
    """A view of `raw` as an array (BYTES: a copy). Raises InputFault that names the tensor."""
    if datatype == "BYTES":
        return _texts(name, math.prod(shape), raw).reshape(shape)
    dtype = DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InputFault(
            f"tensor {name}: binary_data_size is {len(raw)} bytes, {datatype} of shape {list(shape)} has {expected}"
        )
    if datatype == "BOOL":
        octets = np.frombuffer(raw, dtype=np.uint8)
        if octets.size and int(octets.max()) > 1:
            raise InputFault(f"tensor {name}: a BOOL in binary data is the byte 0 or 1, found {int(octets.max())}")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def to_json(name: str, array: Array) -> list[Any]:
    """The values row by row, flat. msgspec writes what is not finite as `null`. Raises InputFault for BYTES beyond UTF-8."""
    if array.dtype != object:
        found: list[Any] = array.ravel().tolist()
        return found
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise InputFault(
            f"output {name} is not UTF-8, which JSON needs: ask for it with parameters.binary_data true"
        ) from error


def to_bytes(array: Array) -> bytes | memoryview:
    """The values row by row, as the binary tensor extension has them."""
    if array.dtype == object:
        return b"".join(part for element in array.ravel() for part in (_LENGTH.pack(len(element)), element))
    if array.nbytes <= COPIED_BYTES_MAX:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _numbers(name: str, datatype: Datatype, values: list[Any], depth: int) -> Array:
    try:
        if depth == 1:
            packed = bytearray(struct.pack(f"<{len(values)}{_CODES[datatype]}", *values))
            return np.frombuffer(packed, DTYPES[datatype])
        with np.errstate(over="ignore"):  # told below, with the tensor's name
            array: Array = np.array(values, dtype=DTYPES[datatype])
    except (OverflowError, struct.error) as error:
        raise InputFault(f"tensor {name}: a value is out of the range of {datatype}") from error
    except ValueError as error:
        raise InputFault(f"tensor {name}: the rows of data differ in length") from error
    if array.dtype.kind == "f" and not finite(array):
        raise InputFault(f"tensor {name}: a value is out of the range of {datatype}")
    return array


def _flattened(name: str, values: list[Any], depth: int) -> tuple[list[str], tuple[int, ...]]:
    """Nested lists of text as one list, and their shape; numpy would take a text for a sequence of characters."""
    shape = [len(values)]
    for _ in range(depth - 1):
        lengths = {len(row) for row in values}
        if len(lengths) > 1:
            raise InputFault(f"tensor {name}: the rows of data differ in length")
        shape.append(lengths.pop() if lengths else 0)
        values = [element for row in values for element in row]
    return values, tuple(shape)


def _texts(name: str, count: int, raw: memoryview) -> Array:
    # Each element has at least its length: checked first, so that a hostile shape cannot make us allocate.
    if count * _LENGTH.size > len(raw):
        raise InputFault(f"tensor {name}: {len(raw)} bytes cannot hold {count} BYTES elements with their lengths")
    array = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        if position + _LENGTH.size > len(raw):
            raise InputFault(f"tensor {name}: the binary data ends in element {index} of {count}")
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size
        if position + length > len(raw):
            raise InputFault(f"tensor {name}: element {index} of {count} runs past the end of the binary data")
        array[index] = bytes(raw[position : position + length])
        position += length
    if position != len(raw):
        raise InputFault(f"tensor {name}: {len(raw) - position} bytes are left after {count} elements")
    return array


@functools.cache  # bounded: 13 datatypes × at most 8 dimensions
def _decoder(datatype: Datatype, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = _ELEMENTS[datatype]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)
