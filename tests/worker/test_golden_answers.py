"""How near a golden answer must be met: each tolerance by itself, floats and whole numbers, up to the last of 64 bits."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import Blob, Datatype, SelfTest, Tensor
from holdfast_worker.failures import LoadRefused
from holdfast_worker.runtime import runtime_named
from support import digits_models, tflite_models
from support.installed_release import golden_cases, publish
from support.loaded_release import loaded

WHOLE: Final = {
    "inputs": (Tensor(name="image", datatype="INT8", shape=(-1, 64)),),
    "outputs": (Tensor(name="scores", datatype="INT8", shape=(-1, 10)),),
    "runtime": "tflite",
}


def said_of(
    state: StateFolder, model: bytes, case: dict[str, Any], absolute: float, relative: float, **details: Any
) -> str:
    """Why a worker refuses it with these tolerances, or nothing."""
    raw = json.dumps({"cases": [case]}).encode()
    described = SelfTest(
        blob=Blob(digest=digest_of(raw), size_bytes=len(raw)), absolute_tolerance=absolute, relative_tolerance=relative
    )
    made = publish("digits", "1.0.0", model, golden=raw, release_changes={"self_test": described}, **details)
    try:
        loaded(state, made)
    except LoadRefused as refused:
        return refused.detail if refused.code == "self-test-failed" else f"{refused.code}: {refused.detail}"
    return ""


@pytest.mark.parametrize(
    ("absolute", "relative", "loads"),
    [(0.002, 0.0, True), (0.0, 0.01, True), (0.0, 0.0005, False), (0.0005, 0.0, False), (0.0005, 0.0007, True)],
)
def test_a_float_may_differ_by_both_together(state: StateFolder, absolute: float, relative: float, loads: bool) -> None:
    """By a thousandth of about one: |answer - expected| <= absolute + relative * |expected|."""
    case = golden_cases(digits_models.trained())[0]
    scores = case["outputs"][0]["data"]
    most = int(np.argmax(scores))
    assert scores[most] > 0.8
    scores[most] += 0.001
    said = said_of(state, digits_models.trained(), case, absolute, relative)
    assert (said == "") == loads, said
    assert loads or said.startswith("cases[0]: output probabilities[")


def test_nothing_of_what_is_nearly_nothing_is_relative(state: StateFolder) -> None:
    case = golden_cases(digits_models.trained())[0]
    scores = case["outputs"][0]["data"]
    least = int(np.argmin(scores))
    scores[least] = 0.0
    assert "expected 0.0" in said_of(state, digits_models.trained(), case, 0.0, 1.0)


@pytest.mark.parametrize(
    ("absolute", "relative", "loads"), [(0.0, 0.0, False), (0.9, 0.0, False), (1.0, 0.0, True), (0.0, 1.0, True)]
)
def test_whole_numbers_are_held_to_the_tolerances_too(
    state: StateFolder, absolute: float, relative: float, loads: bool
) -> None:
    image = np.round(digits_models.images()[:1] * 127).astype(np.int8)
    session = runtime_named("tflite").load(tflite_models.quantised(), threads=1)
    scores = session.run({"image": image}, ("scores",))["scores"].ravel().tolist()
    scores[3] += 1 if scores[3] < 0 else -1
    assert scores[3] != 0
    case = {
        "inputs": [{"name": "image", "datatype": "INT8", "shape": [1, 64], "data": image.ravel().tolist()}],
        "outputs": [{"name": "scores", "datatype": "INT8", "shape": [1, 10], "data": scores}],
    }
    said = said_of(state, tflite_models.quantised(), case, absolute, relative, **WHOLE)
    assert (said == "") == loads, said
    assert loads or said.startswith("cases[0]: output scores[3] is ")


@pytest.mark.parametrize("datatype", ["INT64", "UINT64"])
def test_whole_numbers_beyond_floats_are_told_apart(state: StateFolder, datatype: Datatype) -> None:
    """2^53 and the next are one float, and two answers."""
    one, next_ = 2**53, 2**53 + 1
    case = {
        "inputs": [{"name": "given", "datatype": datatype, "shape": [2], "data": [one, next_]}],
        "outputs": [{"name": "answered", "datatype": datatype, "shape": [2], "data": [one, one]}],
    }
    tensors = {
        "inputs": (Tensor(name="given", datatype=datatype, shape=(-1,)),),
        "outputs": (Tensor(name="answered", datatype=datatype, shape=(-1,)),),
    }
    model = digits_models.echo(datatype)
    assert f"answered[1] is {next_}, expected {one}" in said_of(state, model, case, 0.0, 0.0, **tensors)
    assert said_of(state, model, case, 1.0, 0.0, **tensors) == ""
