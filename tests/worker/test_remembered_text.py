"""Requests that are all JSON, in a form that came before: what they say is what a reader that remembers nothing finds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from holdfast_shared.wire.release import Datatype, Tensor
from holdfast_worker import inference_request
from holdfast_worker.failures import InputFault
from holdfast_worker.inference_request import TEXT_FORMS_MAX, Reader, Request
from holdfast_worker.inference_response import Writer
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.tensors import DTYPES
from support.runner_asked import TWO


def tensors(datatype: Datatype = "FP32", rank: int = 2) -> dict[str, Tensor]:
    return {name: Tensor(name=name, datatype=datatype, shape=(-1,) * rank) for name in ("x", "y")}


def reader(datatype: Datatype = "FP32", rank: int = 2) -> Reader:
    declared = tensors(datatype, rank)
    return Reader({"x": declared["x"]}, declared)


def read(by: Reader, body: bytes, *, wants_binary: bool = False) -> Request | str:
    """The request, or why it is none."""
    try:
        return by.read(memoryview(body), NO_HEADER, wants_binary=wants_binary)
    except InputFault as error:
        return str(error)


def told(found: Request | str) -> Any:
    if isinstance(found, str):
        return found
    values = {
        name: (array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes())
        for name, array in found.tensors.items()
    }
    return found._replace(tensors={}, remembered=False), values


# What clients and strangers put around the data, and for it. {} is where it stands.
AROUND = (
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}]}',
    '{"inputs":[{"data":{},"datatype":"FP32","name":"x","shape":[1,3]}]}',
    ' { "inputs" : [ { "name":"x", "shape":[3,1], "datatype":"FP32", "data": {} } ] } ',
    '{"parameters":{"note":[1,2,3]},"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}],"outputs":[{"name":"y"}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3],"data":{}}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{},"data":[1,2,3]}]}',
    '{"parameters":{"note":{}},"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}],"id":"7"}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}],"parameters":{"stage_times":true}}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":{}}',
)
DATA = (
    "[1,2,3]",
    "[1.5, -2e3, 0]",
    "[[1,2,3]]",
    "[1,2]",
    "[1,2,3,4]",
    "[1e39,0,0]",
    "[null,0,0]",
    '["1","2","3"]',
    "[]",
    "[1,2,3],[4,5,6]",
    '[1,2,3],"name":"y"',
    "[1,2,3]}],[{",
    "7",
    "",
)


@pytest.mark.parametrize("beside", AROUND)
@pytest.mark.parametrize("around", AROUND)
def test_whatever_came_before_each_is_read_for_itself(around: str, beside: str) -> None:
    """Two forms in turn, with everything that may stand in them."""
    lasting = reader()
    for data in (*DATA, *reversed(DATA)):
        for form, wants_binary in ((around, False), (beside, False), (around, True)):
            body = form.replace("{}", data).encode()
            expected = told(read(reader(), body, wants_binary=wants_binary))
            assert told(read(lasting, body, wants_binary=wants_binary)) == expected


@pytest.mark.parametrize("datatype", DTYPES)
def test_the_same_form_with_other_numbers(datatype: Datatype) -> None:
    lasting = reader(datatype, 1)
    data = TWO.get(datatype, [3, 4])
    bodies = [
        json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": values}]}).encode()
        for values in (data, data[::-1], data)
    ]
    found = [read(lasting, body) for body in bodies]
    assert [told(one) for one in found] == [told(read(reader(datatype, 1), body)) for body in bodies]
    assert [isinstance(one, Request) and one.remembered for one in found] == [False, *[datatype != "BYTES"] * 2]


def test_the_answer_to_one_is_what_it_was_but_for_its_numbers() -> None:
    """Also where no number stands, and where an output is missing or of another shape."""
    lasting, writer, declared = reader(), Writer(tensors(), model="m", version="1.0.0"), tensors()
    body = AROUND[0].replace("{}", "[1,2,3]").encode()
    wide = np.arange(6, dtype=np.float32)
    answers: list[dict[str, Any]] = [
        {"x": wide[:3].reshape(1, 3), "y": wide.reshape(2, 3)},
        {"x": wide[3:].reshape(1, 3), "y": wide.reshape(3, 2)},
        {"x": wide[:3].reshape(1, 3), "y": np.full((2, 3), np.nan, np.float32)},
        {"x": wide[:3].reshape(1, 3)},
        {"x": wide[:3].reshape(3, 1), "y": wide.reshape(2, 3)},
    ]
    for answer in answers * 3:
        request = read(lasting, body)
        assert isinstance(request, Request)
        fresh = Writer(declared, model="m", version="1.0.0").answered(request._replace(remembered=False), answer)
        found = writer.answered(request, answer)
        assert (found.header_length, b"".join(found.parts)) == (NO_HEADER, b"".join(fresh.parts))


def test_forms_in_text_are_remembered_within_a_bound() -> None:
    lasting = reader()
    for number in range(3 * TEXT_FORMS_MAX):
        body = AROUND[0].replace("{}", "[1,2,3]").replace('{"inputs"', f'{{"unknown-{number}":0,"inputs"').encode()
        assert isinstance(read(lasting, body), Request)
        assert len(lasting._text_forms) <= TEXT_FORMS_MAX
    long = AROUND[0].replace("{}", "[1,2,3]" + " " * inference_request._TEXT_BYTES_MAX).encode()
    assert [isinstance(read(lasting, long), Request) for _ in range(2)] == [True, True]
