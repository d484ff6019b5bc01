"""A file that is not ONNX is refused before it is uploaded, whatever its bytes are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_shared import onnx_file
from holdfast_shared.errors import Malformed

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample-release" / "model.onnx"


def test_the_graph_says_what_it_is_asked_and_answers() -> None:
    """Weights stored as initializers are no inputs."""
    assert onnx_file.names_in(SAMPLE) == onnx_file.Names(frozenset({"features"}), frozenset({"probabilities"}))


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08", b"\x80" * 20, b"PK\x03\x04", b"\x08\x09"])
def test_other_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=r"not an ONNX model"):
        onnx_file.names_in(path)


def test_no_cut_off_file_is_a_model(tmp_path: Path) -> None:
    whole = SAMPLE.read_bytes()
    path = tmp_path / "cut.onnx"
    passed = []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            onnx_file.names_in(path)
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
        names = onnx_file.names_in(path)
    except Malformed:
        return
    assert names.outputs
