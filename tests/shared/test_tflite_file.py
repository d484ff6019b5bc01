"""A file that is not a whole TFLite model is refused before it is uploaded, and before a runtime computes on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_shared import tflite_file
from holdfast_shared.errors import Malformed
from holdfast_shared.model_file import contradictions
from holdfast_shared.tensor_forms import FileTensor, FileTensors
from holdfast_shared.wire.release import Datatype
from holdfast_worker.tensors import DTYPES
from support import digits_models, tflite_models
from support.digits_models import tensor


def test_the_graph_says_what_it_is_asked_and_answers(tmp_path: Path) -> None:
    """Its weights are no inputs; a dimension of any size is -1, though the file also states a size for it."""
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_models.trained())
    assert tflite_file.tensors_in(path) == FileTensors(
        (FileTensor("image", "FP32", (-1, 64)),), (FileTensor("probabilities", "FP32", (-1, 10)),)
    )


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_has_the_type_and_shape_that_the_runtime_sees(datatype: Datatype) -> None:
    assert tflite_file.tensors_of(tflite_models.echo(datatype, 2)) == FileTensors(
        (FileTensor("given", datatype, (-1, -1)),), (FileTensor("answered", datatype, (-1,)),)
    )


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", b"\x08", b"\x80" * 20, b"....TFL3", b"\xff" * 4 + b"TFL3"]
)
def test_other_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=r"not a TFLite model"):
        tflite_file.tensors_in(path)


def test_an_onnx_file_is_no_tflite_model() -> None:
    with pytest.raises(Malformed, match="TFL3"):
        tflite_file.tensors_of(digits_models.trained())


def test_no_cut_off_file_is_a_model() -> None:
    whole = tflite_models.trained()
    for length in range(len(whole)):
        with pytest.raises(Malformed):
            tflite_file.tensors_of(whole[:length])


@settings(max_examples=300)
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_any_changed_byte_ends_in_tensors_or_one_error(place: int, value: int) -> None:
    changed = bytearray(tflite_models.trained())
    changed[place % len(changed)] = value
    try:
        found = tflite_file.tensors_of(bytes(changed))
    except Malformed:
        return
    assert found.outputs


def test_every_contradiction_names_its_field() -> None:
    there = tflite_file.tensors_of(tflite_models.trained())
    wrong = contradictions(
        there,
        (tensor("image", "FP16", (-1, 63)),),
        (tensor("label", "INT64", (1,)), tensor("probabilities", "FP32", (1, 9))),
    )
    assert [one.field for one in wrong] == [
        "inputs[0].datatype",
        "inputs[0].shape",
        "outputs[0].name",
        "outputs[1].shape",
    ]
    assert contradictions(there, (), ())[0].words == "also needs image"
