"""Requests in a form that came before: read without their header, and answered by what comes now."""

from __future__ import annotations

import json

import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Datatype, Tensor
from holdfast_worker.inference_request import FORMS_MAX
from holdfast_worker.protocol import NO_HEADER, Outcome
from holdfast_worker.tensors import DTYPES
from support import digits_models
from support.installed_release import tensor
from support.runner_asked import TWO, ask_in_binary, body_of, echo_runner, image, runner_of


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_form_that_came_before_is_answered_by_what_comes_now(state: StateFolder, datatype: Datatype) -> None:
    """The header is the same bytes; neither the tensor's values nor the answer's may be those of before."""
    runner = echo_runner(state, datatype)
    for data in (TWO.get(datatype, [3, 4]), TWO.get(datatype, [5, 6])[::-1], TWO.get(datatype, [3, 4])):
        asked = {"inputs": [{"name": "given", "datatype": datatype, "shape": [2], "data": data}]}
        raw = runner.answer(json.dumps(asked).encode(), NO_HEADER, True)
        sent = raw.body[raw.header_length :]
        size = {"parameters": {"binary_data_size": len(sent)}}
        header = json.dumps({"inputs": [{"name": "given", "datatype": datatype, "shape": [2], **size}]}).encode()
        for _ in range(3):
            reply = runner.answer(header + sent, len(header), True)
            assert (reply.outcome, reply.body) == (raw.outcome, raw.body)
            assert body_of(runner.answer(header + sent, len(header), False))["outputs"][0]["data"] == data
            if datatype in ("BOOL", "BYTES"):  # which are looked at every time
                assert runner.answer(header + b"\xff" * len(sent), len(header), True).outcome is Outcome.INPUT_FAULT


def test_outputs_that_change_their_shape_are_described_anew(state: StateFolder) -> None:
    """The header that goes before raw outputs is remembered by what it says of them."""
    runner = runner_of(state, digits_models.trained())
    for rows in (1, 3, 1, 2, 3):
        body, header_length = ask_in_binary(image(rows))
        for _ in range(2):
            reply = runner.answer(body, header_length, True)
            (output,) = body_of(reply)["outputs"]
            assert output["shape"] == [rows, 10]
            assert output["parameters"]["binary_data_size"] == len(reply.body) - reply.header_length == rows * 40


def test_outputs_of_one_size_and_another_shape_are_described_anew(state: StateFolder) -> None:
    runner = echo_runner(state, "FP32", rank=2)
    values = np.arange(6, dtype=np.float32)
    for shape in ((2, 3), (3, 2), (6, 1), (2, 3)):
        given = {"name": "given", "datatype": "FP32", "shape": list(shape), "parameters": {"binary_data_size": 24}}
        header = json.dumps({"inputs": [given]}).encode()
        for _ in range(2):
            (output,) = body_of(runner.answer(header + values.tobytes(), len(header), True))["outputs"]
            assert output["shape"] == list(shape)


def test_each_of_several_tensors_is_read_where_it_lies(state: StateFolder) -> None:
    """In the order in which the header has them, the first time and in a form that came before."""
    model = digits_models.model(
        [digits_models.node("Sub", ["left", "right"], ["rest"])],
        inputs=[digits_models.pixels("left"), digits_models.pixels("right")],
        outputs=[digits_models.pixels("rest")],
    )
    pixels = [Tensor(name=name, datatype="FP32", shape=(-1, 64)) for name in ("left", "right", "rest")]
    ones = np.ones((1, 64), dtype=np.float32)
    golden = {"inputs": [tensor("left", ones * 3), tensor("right", ones)], "outputs": [tensor("rest", ones * 2)]}
    runner = runner_of(state, model, inputs=pixels[:2], outputs=pixels[2:], golden=[golden])
    values = {"left": ones * 9, "right": ones * 4}
    for names in (("left", "right"), ("right", "left")):
        size = {"parameters": {"binary_data_size": ones.nbytes}}
        given = [{"name": name, "datatype": "FP32", "shape": [1, 64], **size} for name in names]
        header = json.dumps({"inputs": given}).encode()
        for _ in range(3):
            reply = runner.answer(header + b"".join(values[name].tobytes() for name in names), len(header), True)
            assert np.frombuffer(reply.body[reply.header_length :], dtype=np.float32).tolist() == [5.0] * 64


def test_forms_are_remembered_within_a_bound(state: StateFolder) -> None:
    runner = runner_of(state, digits_models.trained())
    for number in range(3 * FORMS_MAX):
        body, header_length = ask_in_binary(image(), parameters={f"unknown-{number}": True})
        assert runner.answer(body, header_length, True).outcome is Outcome.OK
        assert len(runner._reader._forms) <= FORMS_MAX
