"""A file that is not ONNX is refused before it is uploaded, whatever its bytes are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_shared import onnx_file
from holdfast_shared.errors import Malformed
from holdfast_shared.model_file import contradictions
from holdfast_shared.tensor_forms import FileTensor, FileTensors
from holdfast_shared.wire.release import Datatype
from holdfast_worker.tensors import DTYPES
from support import digits_models
from support.digits_models import tensor

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample-release" / "model.onnx"


def test_the_graph_says_what_it_is_asked_and_answers() -> None:
    """Weights stored as initializers are no inputs."""
    assert onnx_file.tensors_in(SAMPLE) == FileTensors(
        (FileTensor("features", "FP32", (-1, 4)),), (FileTensor("probabilities", "FP32", (-1, 3)),)
    )


@pytest.mark.parametrize("datatype", DTYPES)
def test_a_tensor_has_the_type_and_shape_that_the_runtime_sees(tmp_path: Path, datatype: Datatype) -> None:
    (tmp_path / "echo.onnx").write_bytes(digits_models.echo(datatype, 2))
    assert onnx_file.tensors_in(tmp_path / "echo.onnx") == FileTensors(
        (FileTensor("given", datatype, (-1, -1)),), (FileTensor("answered", datatype, (-1, -1)),)
    )


def test_what_a_file_leaves_open_is_none() -> None:
    """A shape that is not stated, and a type that has no datatype, are not held against a manifest."""
    assert contradictions(FileTensors((FileTensor("a", None, None),), ()), (tensor("a", "FP32", (3,)),), ()) == []


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08", b"\x80" * 20, b"PK\x03\x04", b"\x08\x09"])
def test_other_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=r"not an ONNX model"):
        onnx_file.tensors_in(path)


def test_no_cut_off_file_is_a_model(tmp_path: Path) -> None:
    whole = SAMPLE.read_bytes()
    path = tmp_path / "cut.onnx"
    passed = []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            onnx_file.tensors_in(path)
        except Malformed:
            continue
        passed.append(length)
    assert not passed


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_end_in_names_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.onnx"
    path.write_bytes(content)
    try:
        names = onnx_file.tensors_in(path)
    except Malformed:
        return
    assert names.outputs
