"""Tensors go through JSON and through raw bytes unchanged; what is wrong with one is one refusal that names it."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from holdfast_shared.wire.release import Datatype
from holdfast_worker import tensors
from holdfast_worker.failures import InputFault
from holdfast_worker.tensors import DTYPES, Array

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
NUMBERS = [datatype for datatype in DTYPES if datatype != "BYTES"]


@st.composite
def any_tensor(draw: st.DrawFn, *, finite: bool) -> tuple[Datatype, Array]:
    datatype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        element = st.text().map(str.encode) if finite else st.binary()
        flat: Array = np.empty(math.prod(shape), dtype=object)
        flat[:] = draw(st.lists(element, min_size=flat.size, max_size=flat.size))
        return datatype, flat.reshape(shape)
    dtype = DTYPES[datatype]
    elements = (
        st.floats(allow_nan=False, allow_infinity=False, width=dtype.itemsize * 8)  # type: ignore[arg-type]  # 16, 32 or 64
        if finite and dtype.kind == "f"
        else None
    )
    return datatype, draw(arrays.arrays(dtype, shape, elements=elements))


def same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and tensors.to_bytes(one) == tensors.to_bytes(other)


@given(any_tensor(finite=False))
def test_raw_bytes_come_back_bit_by_bit(tensor: tuple[Datatype, Array]) -> None:
    datatype, array = tensor
    raw = memoryview(tensors.to_bytes(array))
    assert same(tensors.from_bytes("t", datatype, array.shape, raw), array)


@given(any_tensor(finite=True))
def test_json_comes_back_value_by_value_flat_and_nested(tensor: tuple[Datatype, Array]) -> None:
    datatype, array = tensor
    flat = tensors.to_json("t", array)
    nested: Any = np.array([None, *flat], dtype=object)[1:].reshape(array.shape).tolist()
    for data in (flat, nested):
        raw = msgspec.Raw(msgspec.json.encode(data))
        found = tensors.from_json("t", datatype, array.shape, raw)
        assert found.shape == array.shape
        assert found.dtype == array.dtype
        assert found.tolist() == array.tolist()


def test_bytes_are_laid_out_as_the_public_client_lays_them_out() -> None:
    from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

    array: Array = np.array([b"", b"one", "zwölf".encode(), b"\x00\xff"], dtype=object)
    theirs = serialize_byte_tensor(array).item()
    assert tensors.to_bytes(array) == theirs
    assert deserialize_bytes_tensor(theirs).tolist() == array.tolist()
    assert tensors.from_bytes("t", "BYTES", (4,), memoryview(theirs)).tolist() == array.tolist()


def test_what_json_does_not_have_goes_out_as_null() -> None:
    array: Array = np.array([1.0, math.nan, math.inf], dtype=np.float32)
    assert msgspec.json.encode(tensors.to_json("t", array)) == b"[1.0,null,null]"


def test_text_that_is_not_utf_8_goes_out_only_as_bytes() -> None:
    array: Array = np.array([b"\xff"], dtype=object)
    with pytest.raises(InputFault, match="output t is not UTF-8"):
        tensors.to_json("t", array)
    assert tensors.to_bytes(array) == b"\x01\x00\x00\x00\xff"


def test_large_outputs_are_not_copied_and_odd_ones_are_laid_out_row_by_row() -> None:
    large: Array = np.arange(100_000, dtype=np.float32)
    sent = tensors.to_bytes(large)
    assert isinstance(sent, memoryview)
    assert np.shares_memory(np.frombuffer(sent, dtype=np.float32), large)
    crossed = large.reshape(100, 1000).T
    assert bytes(tensors.to_bytes(crossed)) == crossed.tobytes()


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP32", (2,), "[1]", "has 1 values, its shape [2] has 2"),
        ("FP32", (2,), "[1,2,3]", "has 3 values"),
        ("FP32", (1, 2), "[[1],[2]]", "nested as [2, 1], its shape is [1, 2]"),
        ("FP32", (2, 2), "[[1,2],[3]]", "differ in length"),
        ("FP32", (1, 2), "[[[1,2]]]", "Expected `float`, got `array`"),
        ("FP32", (1,), '["1"]', "Expected `float`, got `str`"),
        ("FP32", (1,), "[null]", "Expected `float`, got `null`"),
        ("FP32", (1,), "[true]", "Expected `float`, got `bool`"),
        ("FP32", (1,), "[1e39]", "out of the range of FP32"),
        ("FP16", (1,), "[70000]", "out of the range of FP16"),
        ("FP64", (1,), "[1e400]", "Number out of range"),
        ("UINT8", (1,), "[256]", "<= 255"),
        ("UINT8", (1,), "[-1]", ">= 0"),
        ("INT8", (1,), "[128]", "<= 127"),
        ("INT32", (1,), "[1.5]", "Expected `int`, got `float`"),
        ("UINT64", (1,), "[18446744073709551616]", "out of the range of UINT64"),
        ("INT64", (1,), "[9223372036854775808]", "out of the range of INT64"),
        ("INT64", (1,), "[" + "9" * 400 + "]", "range"),
        ("BOOL", (1,), "[1]", "Expected `bool`, got `int`"),
        ("BYTES", (1,), "[1]", "Expected `str`, got `int`"),
        ("BYTES", (2, 1), '[["a"],["b","c"]]', "differ in length"),
        ("BYTES", (2, 1), '[["a","b"]]', "nested as [1, 2]"),
        ("FP32", (1,), "7", "Expected `array`, got `int`"),
        ("FP32", (1,), '{"a":1}', "Expected `array`, got `object`"),
    ],
)
def test_wrong_json_is_told_with_the_tensors_name(
    datatype: Datatype, shape: tuple[int, ...], data: str, words: str
) -> None:
    with pytest.raises(InputFault) as fault:
        tensors.from_json("weight", datatype, shape, msgspec.Raw(data.encode()))
    assert str(fault.value).startswith("tensor weight: ")
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP32", (2,), b"\x00" * 7, "is 7 bytes, FP32 of shape [2] has 8"),
        ("INT64", (2, 2), b"\x00" * 33, "is 33 bytes"),
        ("BOOL", (2,), b"\x01\x02", "the byte 0 or 1, found 2"),
        ("BYTES", (1,), b"\x05\x00\x00\x00abc", "element 0 of 1 runs past the end"),
        ("BYTES", (1,), b"\xff\xff\xff\xffabc", "element 0 of 1 runs past the end"),
        ("BYTES", (2,), b"\x04\x00\x00\x00abcd", "ends in element 1 of 2"),
        ("BYTES", (1,), b"\x00\x00\x00\x00x", "1 bytes are left after 1 elements"),
        ("BYTES", (2**40,), b"\x00" * 8, "cannot hold 1099511627776 BYTES elements"),
    ],
)
def test_wrong_raw_bytes_are_told_with_the_tensors_name(
    datatype: Datatype, shape: tuple[int, ...], raw: bytes, words: str
) -> None:
    with pytest.raises(InputFault) as fault:
        tensors.from_bytes("weight", datatype, shape, memoryview(raw))
    assert str(fault.value).startswith("tensor weight: ")
    assert words in str(fault.value)


@given(
    datatype=st.sampled_from(list(DTYPES)),
    shape=arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
    raw=st.binary(max_size=80),
)
def test_any_bytes_end_in_a_tensor_of_that_shape_or_one_fault(
    datatype: Datatype, shape: tuple[int, ...], raw: bytes
) -> None:
    try:
        found = tensors.from_bytes("t", datatype, shape, memoryview(raw))
    except InputFault:
        return
    assert found.shape == shape
    assert tensors.to_bytes(found) == raw


@given(
    datatype=st.sampled_from(list(DTYPES)),
    shape=arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
)
def test_any_json_ends_in_a_tensor_of_that_shape_or_one_fault(
    datatype: Datatype, shape: tuple[int, ...], data: object
) -> None:
    try:
        found = tensors.from_json("t", datatype, shape, msgspec.Raw(json.dumps(data).encode()))
    except InputFault as fault:
        assert str(fault).startswith("tensor t: ")  # noqa: PT017 - most examples raise; those that do not are checked too
        return
    assert found.shape == shape
    assert found.dtype == DTYPES[datatype]
