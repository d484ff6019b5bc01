"""A release that shadows: what it says of its own answer beside the serving one, with real models in both runtimes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Datatype, Runtime, Tensor
from holdfast_shared.wire.report import DIFFERENCE_BINS, difference_bin
from holdfast_worker import protocol, release_runner
from holdfast_worker.comparison import Comparison
from holdfast_worker.protocol import NO_HEADER, Compare, Compared, Kind, Outcome
from holdfast_worker.release_runner import Reply, Runner
from support import digits_models, tflite_models
from support.installed_release import install, tensor
from support.worker_process import running_worker

MODELS = {"onnx": digits_models, "tflite": tflite_models}


def runner(state: StateFolder, model: bytes, version: str = "1.0.0", **details: Any) -> Runner:
    ref = install(state, "digits", version, model, **details)
    return release_runner.load(state.manifests, state.blobs, ref.digest)


def asked(rows: int = 40, **changes: Any) -> bytes:
    return json.dumps({"inputs": [tensor("image", digits_models.images()[:rows])], **changes}).encode()


def comparing(request: bytes, reply: Reply, header_length: int = NO_HEADER) -> Compare:
    return Compare(7, header_length, reply.header_length, memoryview(request), memoryview(reply.body))


def compared(serving: Runner, shadow: Runner, request: bytes, *, wants_binary: bool = False) -> Compared:
    reply = serving.answer(request, NO_HEADER, wants_binary)
    assert reply.outcome is Outcome.OK
    return Comparison(shadow).of(comparing(request, reply))


@pytest.fixture(params=["onnx", "tflite"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = request.param
    return found


@pytest.mark.parametrize("wants_binary", [False, True], ids=["json", "binary"])
def test_a_release_agrees_with_itself_on_every_row(state: StateFolder, runtime: Runtime, wants_binary: bool) -> None:
    one = runner(state, MODELS[runtime].trained(), runtime=runtime)
    told = compared(one, one, asked(), wants_binary=wants_binary)
    assert (told.id, told.outcome, told.rows, told.agreed, told.difference) == (7, Outcome.OK, 40, 40, 0)
    assert told.confidence == told.serving_confidence
    assert len(told.confidence) == len(told.margin) == 40


def test_two_runtimes_of_one_model_agree_though_their_numbers_differ(state: StateFolder) -> None:
    serving = runner(state, digits_models.trained())
    shadow = runner(state, tflite_models.trained(), "1.1.0", runtime="tflite")
    told = compared(serving, shadow, asked(200))
    assert (told.rows, told.agreed) == (200, 200)
    assert 0 < told.difference <= difference_bin(1e-4)


def test_rows_agree_where_both_see_the_same_class(state: StateFolder) -> None:
    """Two honest releases: held against what numpy says of their answers."""
    serving = runner(state, digits_models.trained())
    shadow = runner(state, digits_models.trained(0.0005), "1.1.0")
    images = digits_models.images()[:300]
    ours = serving.run({"image": images})[0]["probabilities"]
    theirs = shadow.run({"image": images})[0]["probabilities"]
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    assert 0 < same < 300
    told = compared(serving, shadow, asked(300))
    assert (told.rows, told.agreed) == (300, same)
    assert told.difference == difference_bin(float(np.abs(ours.astype(float) - theirs.astype(float)).max()))
    assert told.confidence != told.serving_confidence


@pytest.mark.parametrize(("declared", "agreed"), [("probabilities", 40), (None, 40)], ids=["declared", "by its looks"])
def test_scores_are_measured_on_both_sides(state: StateFolder, declared: str | None, agreed: int) -> None:
    shadow = runner(state, digits_models.trained(), "1.1.0", scores=declared)
    told = compared(runner(state, digits_models.trained()), shadow, asked())
    assert (told.agreed, len(told.serving_margin)) == (agreed, 40)


def echo(state: StateFolder, datatype: Datatype, version: str, name: str = "answered", **details: Any) -> Runner:
    data = {"BOOL": [True], "BYTES": ["a"]}.get(datatype, [1])
    case = {"datatype": datatype, "shape": [1], "data": data}
    return runner(
        state,
        digits_models.echo(datatype, 1),
        version,
        inputs=(Tensor(name="given", datatype=datatype, shape=(-1,)),),
        outputs=(Tensor(name="answered", datatype=datatype, shape=(-1,)),),
        golden=[{"inputs": [{"name": "given", **case}], "outputs": [{"name": name, **case}]}],
        release_changes={"outputs": {name: "model.answered"}},
        **details,
    )


@pytest.mark.parametrize(
    ("datatype", "given", "answered", "agreed", "difference"),
    [
        ("FP32", [1.0, 2.0, 3.0], [1.0, 2.00001, 3.5], 2, difference_bin(0.5)),
        ("INT64", [2**53 + 1, 7], [2**53, 8], 1, difference_bin(1)),
        ("BYTES", ["a", "grün"], ["a", "blau"], 1, difference_bin(1)),
        ("BOOL", [True, False], [True, True], 1, difference_bin(1)),
    ],
)
def test_what_is_no_score_agrees_within_the_self_tests_tolerances(
    state: StateFolder, datatype: Datatype, given: list[Any], answered: list[Any], agreed: int, difference: int
) -> None:
    """The serving answer is said to have been another: the shadow gives back what it is given."""
    one = {"datatype": datatype, "shape": [len(given)]}
    request = json.dumps({"inputs": [{"name": "given", **one, "data": given}]}).encode()
    answer = json.dumps({"outputs": [{"name": "answered", **one, "data": answered}]}).encode()
    shadow = echo(state, datatype, "1.0.0", tolerance=1e-5)
    told = Comparison(shadow).of(Compare(1, NO_HEADER, NO_HEADER, memoryview(request), memoryview(answer)))
    assert (told.rows, told.agreed, told.difference) == (len(given), agreed, difference)
    assert told.confidence == ()


def test_what_the_two_do_not_share_cannot_be_compared_and_is_no_error(state: StateFolder) -> None:
    request = json.dumps({"inputs": [{"name": "given", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
    serving = echo(state, "FP32", "1.0.0", name="value")
    told = compared(serving, echo(state, "FP32", "1.1.0"), request)
    assert (told.outcome, told.rows) == (Outcome.OK, 0)
    named = json.dumps({**json.loads(request), "outputs": [{"name": "value"}]}).encode()
    told = compared(serving, echo(state, "FP32", "1.1.0"), named)
    assert (told.outcome, told.rows) == (Outcome.INPUT_FAULT, 0)


def test_a_shadow_that_raises_or_is_null_says_so(state: StateFolder) -> None:
    serving = runner(state, digits_models.trained())
    blank = json.dumps({"inputs": [tensor("image", digits_models.blank_images()[:1])]}).encode()
    told = compared(serving, runner(state, digits_models.nan_on_some(), "1.1.0"), blank)
    assert (told.outcome, told.rows) == (Outcome.NULL, 0)
    told = compared(serving, runner(state, digits_models.raises_on_two(), "1.2.0"), asked(2))
    assert (told.outcome, told.rows) == (Outcome.ERROR, 0)
    assert told.compute_us > 0


@pytest.mark.parametrize("answer", [b"", b"{", b'{"outputs": []}', b'{"outputs": [{"name": "probabilities"}]}'])
def test_an_answer_that_no_worker_writes_cannot_be_compared(state: StateFolder, answer: bytes) -> None:
    request = asked(1)
    told = Comparison(runner(state, digits_models.trained())).of(
        Compare(1, NO_HEADER, NO_HEADER, memoryview(request), memoryview(answer))
    )
    assert (told.outcome, told.rows) == (Outcome.OK, 0)


def test_the_bins_of_differences_are_decades_between_the_same_and_more_than_one() -> None:
    assert [difference_bin(value) for value in (0.0, 1e-9, 1e-7, 1.5e-7, 1.0, 1.1)] == [
        0,
        1,
        1,
        2,
        8,
        DIFFERENCE_BINS - 1,
    ]


@pytest.mark.slow
def test_a_worker_that_is_to_shadow_compares_over_its_socket_and_answers_nothing_else(state: StateFolder) -> None:
    ref = install(state, "digits", "1.0.0", digits_models.trained())
    request = asked(3)
    reply = release_runner.load(state.manifests, state.blobs, ref.digest).answer(request, NO_HEADER, True)
    with running_worker() as worker:
        worker.load(state, ref.digest, version=protocol.VERSION, shadows=True)
        head = protocol.compare_head(
            4,
            request_header_length=NO_HEADER,
            answer_header_length=reply.header_length,
            request_bytes=len(request),
            answer_bytes=len(reply.body),
        )
        worker.socket.sendall(head + request + reply.body)
        frame = worker.frame()
        assert frame is not None
        assert frame[protocol.LENGTH.size] == Kind.COMPARED
        told = protocol.decode_compared(frame)
        assert (told.id, told.rows, told.agreed) == (4, 3, 3)
        worker.ask(request)
        assert worker.frame() is None
        assert worker.exit_status() != 0
