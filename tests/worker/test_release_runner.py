"""A release in process: the answers of the protocol, what counts as null, whose fault a failure is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Datatype, Tensor
from holdfast_worker.inference_request import Request
from holdfast_worker.inference_response import Writer
from holdfast_worker.nulls import null_in
from holdfast_worker.protocol import NO_HEADER, Outcome
from holdfast_worker.release_runner import Runner
from holdfast_worker.tensors import DTYPES, Array
from support import digits_models
from support.installed_release import tensor
from support.runner_asked import TWO, ask, ask_in_binary, body_of, echo_runner, image, runner_of


@pytest.fixture
def runner(state: StateFolder) -> Runner:
    return runner_of(state, digits_models.trained())


def test_an_answer_names_release_request_and_outputs(runner: Runner) -> None:
    reply = runner.answer(ask(id="request-7"), NO_HEADER, False)
    found = body_of(reply)
    assert reply.outcome is Outcome.OK
    assert {key: value for key, value in found.items() if key != "outputs"} == {
        "model_name": "digits",
        "model_version": "1.2.3",
        "id": "request-7",
    }
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [1, 10])
    assert np.argmax(output["data"]) == digits_models.labels()[0]


def test_an_id_that_was_not_given_is_not_answered(runner: Runner) -> None:
    assert "id" not in body_of(runner.answer(ask(), NO_HEADER, False))


def test_nested_flat_and_binary_requests_have_one_answer(runner: Runner) -> None:
    values = image(3)
    nested = ask(inputs=[{**tensor("image", values), "data": values.tolist()}])
    flat = ask(inputs=[tensor("image", values)])
    body, header_length = ask_in_binary(values)
    answers = [
        body_of(runner.answer(*asked, False))["outputs"]
        for asked in ((nested, NO_HEADER), (flat, NO_HEADER), (body, header_length))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["shape"] == [3, 10]


@pytest.mark.parametrize(
    ("changes", "wants_binary", "binary"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"parameters": {"binary_data_output": True}}, False, True),
        ({"parameters": {"binary_data_output": False}}, True, False),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, False, True),
        (
            {
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            True,
            False,
        ),
        ({"outputs": []}, False, False),
    ],
)
def test_the_nearest_word_decides_whether_an_output_is_binary(
    runner: Runner, changes: dict[str, Any], wants_binary: bool, binary: bool
) -> None:
    """The output's own parameter, then the request's, then the gateway's."""
    reply = runner.answer(ask(**changes), NO_HEADER, wants_binary)
    expected = runner.run({"image": image()})[0]["probabilities"]
    (output,) = body_of(reply)["outputs"]
    if binary:
        assert output["parameters"] == {"binary_data_size": 40}
        assert "data" not in output
        assert reply.body[reply.header_length :] == expected.tobytes()
    else:
        assert reply.header_length == NO_HEADER
        assert output["data"] == pytest.approx(expected.ravel().tolist())


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_is_served_in_json_and_in_binary(state: StateFolder, datatype: Datatype) -> None:
    runner = echo_runner(state, datatype)
    data = TWO.get(datatype, [3, 4])
    asked = {"inputs": [{"name": "given", "datatype": datatype, "shape": [2], "data": data}]}
    in_json = runner.answer(json.dumps(asked).encode(), NO_HEADER, False)
    assert body_of(in_json)["outputs"][0]["data"] == data
    in_binary = runner.answer(json.dumps(asked).encode(), NO_HEADER, True)
    raw = in_binary.body[in_binary.header_length :]
    again = {
        "inputs": [{"name": "given", "datatype": datatype, "shape": [2], "parameters": {"binary_data_size": len(raw)}}]
    }
    header = json.dumps(again).encode()
    assert body_of(runner.answer(header + raw, len(header), False))["outputs"][0]["data"] == data


def test_the_only_output_that_was_asked_for_may_be_missing_in_a_form_that_came_before() -> None:
    """A function may leave an output out, which is its null; others are there that nobody asked for."""
    declared = {name: Tensor(name=name, datatype="FP32", shape=(-1,)) for name in ("label", "score")}
    writer = Writer(declared, model="m", version="1.0.0")
    request = Request(None, {}, (("label", True),), remembered=True)
    (header,) = writer.answered(request, {"score": np.zeros(1, np.float32)}).parts
    assert json.loads(bytes(header))["outputs"] == []


def test_the_public_triton_client_reads_our_answers_and_we_read_its_requests(state: StateFolder) -> None:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    runner = echo_runner(state, "BYTES", 2)
    values: Array = np.array([[b"\x00\xff", b""], ["grün".encode(), b"x"]], dtype=object)[1:]
    for binary_in in (True, False):
        for binary_out in (True, False):
            given = InferInput("given", [1, 2], "BYTES")
            given.set_data_from_numpy(values, binary_data=binary_in)
            body, header_length = InferenceServerClient.generate_request_body(
                [given], outputs=[InferRequestedOutput("answered", binary_data=binary_out)], request_id="9"
            )
            reply = runner.answer(body, NO_HEADER if header_length is None else header_length, False)
            result = InferenceServerClient.parse_response_body(
                reply.body, header_length=None if reply.header_length == NO_HEADER else reply.header_length
            )
            assert [
                text if isinstance(text, bytes) else text.encode() for text in result.as_numpy("answered").ravel()
            ] == [
                "grün".encode(),
                b"x",
            ]
            assert result.get_response()["id"] == "9"


# ---------------------------------------------------------------- nulls
@pytest.mark.parametrize(
    ("model", "sentinels"),
    [
        (digits_models.nan_on_some, None),
        (digits_models.infinite_on_some, None),
        (digits_models.empty_on_some, None),
        (lambda: digits_models.constant(-1.0), {"probabilities": -1.0}),
        (lambda: digits_models.constant(0.1), {"probabilities": 0.1}),
    ],
    ids=["NaN", "infinite", "empty", "sentinel", "a sentinel that no FP32 is exactly"],
)
def test_null_answers_are_told_and_sent_all_the_same(
    state: StateFolder, model: Callable[[], bytes], sentinels: dict[str, float] | None
) -> None:
    runner = runner_of(state, model(), sentinels=sentinels)
    asked = ask(inputs=[tensor("image", digits_models.blank_images()[:1])])
    for wants_binary in (False, True):
        reply = runner.answer(asked, NO_HEADER, wants_binary)
        assert reply.outcome is Outcome.NULL
        assert body_of(reply)["outputs"][0]["name"] == "probabilities"


def test_an_output_that_is_missing_is_null() -> None:
    assert null_in({}, ["label"], {}) == "output label is missing"
    assert null_in({"label": np.array([1])}, ["label"], {}) is None


def test_not_a_number_is_null_on_just_those_images_that_break_it(state: StateFolder) -> None:
    runner = runner_of(state, digits_models.nan_on_some())
    blank, inked = digits_models.blank_images(), digits_models.inked_images()
    assert runner.run({"image": inked[:5]})[1] is Outcome.OK
    assert runner.run({"image": blank[:1]})[1] is Outcome.NULL
    reply = runner.answer(ask(inputs=[tensor("image", blank[:1])]), NO_HEADER, False)
    assert reply.outcome is Outcome.NULL
    assert body_of(reply)["outputs"][0]["data"] == [None] * 10


def test_a_null_counts_even_in_an_output_that_was_not_asked_for(state: StateFolder) -> None:
    """The application's choice of outputs does not hide a broken model."""
    model = digits_models.model(
        [
            digits_models.node("Div", ["image", "image"], ["broken"]),
            digits_models.node("Identity", ["image"], ["fine"]),
        ],
        outputs=[digits_models.pixels("broken"), digits_models.pixels("fine")],
    )
    outputs = tuple(Tensor(name=name, datatype="FP32", shape=(-1, 64)) for name in ("broken", "fine"))
    ones = np.ones((1, 64), dtype=np.float32)
    runner = runner_of(
        state, model, outputs=outputs, golden=[{"inputs": [tensor("image", ones)], "outputs": [tensor("fine", ones)]}]
    )
    reply = runner.answer(ask(outputs=[{"name": "fine"}]), NO_HEADER, False)
    assert reply.outcome is Outcome.NULL
    assert [output["name"] for output in body_of(reply)["outputs"]] == ["fine"]


def test_a_sentinel_in_a_part_of_an_answer_is_no_null(state: StateFolder) -> None:
    ones = np.ones((1, 64), dtype=np.float32)
    model = digits_models.model(
        [digits_models.node("Identity", ["image"], ["same"])], outputs=[digits_models.pixels("same")]
    )
    runner = runner_of(
        state,
        model,
        outputs=(Tensor(name="same", datatype="FP32", shape=(-1, 64)),),
        golden=[{"inputs": [tensor("image", ones)], "outputs": [tensor("same", ones)]}],
        sentinels={"same": 0.0},
    )
    assert runner.run({"image": np.zeros((2, 64), np.float32)})[1] is Outcome.NULL
    assert runner.run({"image": np.eye(2, 64, dtype=np.float32)})[1] is Outcome.OK


def test_a_model_that_raises_is_an_error_and_goes_on(state: StateFolder) -> None:
    runner = runner_of(state, digits_models.raises_on_two())
    failed = runner.answer(ask(inputs=[tensor("image", image(2))]), NO_HEADER, False)
    assert failed.outcome is Outcome.ERROR
    assert set(body_of(failed)) == {"error"}
    assert runner.answer(ask(), NO_HEADER, False).outcome is Outcome.OK


def test_an_answer_of_another_shape_than_declared_is_the_models_error(state: StateFolder) -> None:
    """A caller that trusted the manifest would read it wrongly."""
    outputs = (Tensor(name="probabilities", datatype="FP32", shape=(1, 10)),)
    runner = runner_of(state, digits_models.trained(), outputs=outputs)
    assert runner.answer(ask(), NO_HEADER, False).outcome is Outcome.OK
    reply = runner.answer(ask(inputs=[tensor("image", image(2))]), NO_HEADER, False)
    assert reply.outcome is Outcome.ERROR
    assert "output probabilities has shape [2, 10], declared [1, 10]" in body_of(reply)["error"]


# ---------------------------------------------------------------- the request's own faults
GOOD = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not an inference request"),
        (b"{", "not an inference request"),
        (b"[]", "not an inference request"),
        (b'{"inputs": 7}', "$.inputs"),
        (b'{"inputs": []}', "$.inputs"),
        (b'{"inputs": [{"name": "image\xff"}]}', "not an inference request"),
        (b"[" * 100_000, "not an inference request"),
        (json.dumps({"inputs": [GOOD], "id": 7}).encode(), "$.id"),
        (json.dumps({"inputs": [GOOD]}).encode() + b"\x00" * 8, "not an inference request"),
    ],
)
def test_what_is_no_request_is_one_clear_fault(runner: Runner, body: bytes, words: str) -> None:
    reply = runner.answer(body, NO_HEADER, False)
    assert reply.outcome is Outcome.INPUT_FAULT
    assert words in body_of(reply)["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "picture"}, "there is no input tensor 'picture'; the model takes image"),
        ({"name": "x" * 5000}, "xxx…'"),
        ({"datatype": "FP64"}, "tensor image: datatype 'FP64', the model takes FP32"),
        ({"shape": [64]}, "tensor image: shape [64], the model takes [-1, 64]"),
        ({"shape": [1, 63]}, "tensor image: shape [1, 63], the model takes [-1, 64]"),
        ({"shape": [-1, 64]}, "shape"),
        ({"shape": [0, 64], "data": []}, "has no element"),
        ({"shape": [2**62, 64]}, "tensor image: data has 64 values"),
        ({"data": [0.5] * 63}, "tensor image: data has 63 values, its shape [1, 64] has 64"),
        ({"data": ["a"] * 64}, "tensor image: data of FP32"),
        ({"parameters": {"binary_data_size": 256}}, "both data and parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not supported"),
    ],
)
def test_a_wrong_tensor_is_named(runner: Runner, change: dict[str, Any], words: str) -> None:
    reply = runner.answer(ask(inputs=[{**GOOD, **change}]), NO_HEADER, False)
    error = body_of(reply)["error"]
    assert reply.outcome is Outcome.INPUT_FAULT
    assert words in error
    assert len(error) < 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": [{key: GOOD[key] for key in ("name", "datatype", "shape")}]}, "neither data nor"),
        ({"inputs": [GOOD, GOOD]}, "tensor image is given twice"),
        ({"outputs": [{"name": "label"}]}, "there is no output 'label'; the model answers probabilities"),
        ({"outputs": [{"name": "probabilities"}] * 2}, "asked for twice"),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": "yes"}}]}, "binary_data"),
    ],
)
def test_a_wrong_request_is_told(runner: Runner, changes: dict[str, Any], words: str) -> None:
    reply = runner.answer(ask(**changes), NO_HEADER, False)
    assert reply.outcome is Outcome.INPUT_FAULT
    assert words in body_of(reply)["error"]


@pytest.mark.parametrize(
    ("more", "header", "words"),
    [
        (b"", 10_000, "Inference-Header-Content-Length is 10000, the body has"),
        (b"", 5, "not an inference request"),
        (b"\x00", None, "1 bytes of the body belong to no tensor"),
    ],
)
def test_a_body_that_is_not_as_long_as_it_says_is_told(
    runner: Runner, more: bytes, header: int | None, words: str
) -> None:
    body, header_length = ask_in_binary(image())
    reply = runner.answer(body + more, header_length if header is None else header, False)
    assert reply.outcome is Outcome.INPUT_FAULT
    assert words in body_of(reply)["error"]


def test_every_cut_of_a_binary_request_is_the_requests_fault(runner: Runner) -> None:
    body, header_length = ask_in_binary(image())
    for length in [*range(len(body)), len(body), *range(len(body))]:  # before its form is remembered, and after
        if length == len(body):
            assert runner.answer(body, header_length, False).outcome is Outcome.OK
            continue
        assert runner.answer(body[:length], header_length, False).outcome is Outcome.INPUT_FAULT


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), header_length=st.integers(0, 210) | st.just(NO_HEADER))
def test_any_bytes_are_answered(runner: Runner, body: bytes, header_length: int) -> None:
    reply = runner.answer(body, header_length, False)
    assert reply.outcome is Outcome.INPUT_FAULT
    assert set(body_of(reply)) == {"error"}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_byte_of_a_request_may_be_wrong(runner: Runner, position: int, byte: int) -> None:
    """It is answered, or refused as the request's fault: it never ends the worker and is never counted as the model's."""
    body, header_length = ask_in_binary(image(), id="7")
    changed = bytearray(body)
    changed[position % header_length] = byte
    assert runner.answer(changed, header_length, False).outcome in (Outcome.OK, Outcome.INPUT_FAULT)
