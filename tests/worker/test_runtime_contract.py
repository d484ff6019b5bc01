"""Every runtime: bytes to a session, arrays in and out unchanged, one kind of refusal at load and one in a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper

from holdfast_shared.wire.release import Datatype
from holdfast_worker.failures import InputFault, LoadRefused, ModelRaised
from holdfast_worker.runtime import Runtime, runtime_named
from holdfast_worker.tensors import DTYPES, Array, ModelTensor
from support import digits_models, tflite_models


class Backend(NamedTuple):
    """A runtime, and the same models in its own file format."""

    runtime: Runtime
    trained: Callable[[], bytes]
    echo: Callable[[Datatype, int], bytes]
    raises_on_two: Callable[[], bytes]


MODELS: dict[str, Any] = {"onnx": digits_models, "tflite": tflite_models}


@pytest.fixture(params=MODELS)
def backend(request: pytest.FixtureRequest) -> Backend:
    models = MODELS[request.param]
    return Backend(runtime_named(request.param), models.trained, models.echo, models.raises_on_two)


VALUES: dict[Datatype, list[object]] = {
    "BOOL": [True, False, True],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 2**16 - 1],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-(2**15), 0, 2**15 - 1],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-1.5, 0, 65504],
    "FP32": [-1.5, 0.1, 3.4e38],
    "FP64": [-1.5, 0.1, 1.7e308],
    "BYTES": [b"", "grün".encode(), b"a\x00b"],
}


def test_a_session_says_what_the_file_takes_and_answers(backend: Backend) -> None:
    session = backend.runtime.load(backend.trained(), threads=1)
    assert session.inputs == (ModelTensor("image", "FP32", (-1, 64)),)
    assert session.outputs == (ModelTensor("probabilities", "FP32", (-1, 10)),)


def test_a_real_model_reads_real_digits(backend: Backend) -> None:
    session = backend.runtime.load(backend.trained(), threads=1)
    found = session.run({"image": digits_models.images()}, ("probabilities",))["probabilities"]
    assert (found.argmax(axis=1) == digits_models.labels()).mean() > 0.9


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_goes_through_unchanged(backend: Backend, datatype: Datatype) -> None:
    if datatype == "UINT16" and backend.runtime.describe()["runtime"].startswith("tflite-runtime "):
        with pytest.raises(LoadRefused, match="UINT16"):  # cannot be given one, and says so before anything serves
            backend.runtime.load(backend.echo(datatype, 1), threads=1)
        return
    session = backend.runtime.load(backend.echo(datatype, 1), threads=1)
    given: Array = np.empty(3, dtype=DTYPES[datatype])
    given[:] = VALUES[datatype]
    answered = session.run({"given": given}, ("answered",))["answered"]
    assert answered.dtype == given.dtype
    assert answered.tolist() == given.tolist()


def test_an_array_may_lie_anywhere_and_be_read_only(backend: Backend) -> None:
    """Requests are views of a receive buffer: at odd addresses, and not to be written to."""
    session = backend.runtime.load(backend.echo("FP64", 1), threads=1)
    raw = b"\x00" + np.arange(5, dtype=np.float64).tobytes()
    given = np.frombuffer(memoryview(raw)[1:], dtype=np.float64)
    assert session.run({"given": given}, ("answered",))["answered"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08", b"\x80" * 20, b"PK\x03\x04"])
def test_other_bytes_are_refused(backend: Backend, content: bytes) -> None:
    with pytest.raises(LoadRefused) as refused:
        backend.runtime.load(content, threads=1)
    assert refused.value.code == "load-failed"
    assert "\n" not in refused.value.detail


def test_a_file_that_was_cut_off_is_refused(backend: Backend) -> None:
    whole = backend.trained()
    for length in range(0, len(whole), 97):
        with pytest.raises(LoadRefused):
            backend.runtime.load(whole[:length], threads=1)


def test_a_model_that_cannot_compute_raises_one_error(backend: Backend) -> None:
    session = backend.runtime.load(backend.raises_on_two(), threads=1)
    session.run({"image": digits_models.images()[:1]}, ("probabilities",))
    with pytest.raises(ModelRaised):
        session.run({"image": digits_models.images()[:2]}, ("probabilities",))
    session.run({"image": digits_models.images()[:1]}, ("probabilities",))  # and goes on working


@pytest.mark.parametrize("feeds", [{}, {"image": np.zeros((1, 3), np.float32)}, {"image": np.zeros((1, 64), np.int64)}])
def test_wrong_feeds_raise_the_same_error(backend: Backend, feeds: dict[str, Array]) -> None:
    session = backend.runtime.load(backend.trained(), threads=1)
    with pytest.raises(ModelRaised):
        session.run(feeds, ("probabilities",))


def test_many_threads_may_run_one_session(backend: Backend) -> None:
    session = backend.runtime.load(backend.trained(), threads=1)
    images = digits_models.images()
    expected = session.run({"image": images}, ("probabilities",))["probabilities"]
    wrong: list[int] = []

    def run(first: int) -> None:
        for row in range(first, len(images), 4):
            found = session.run({"image": images[row : row + 1]}, ("probabilities",))["probabilities"]
            if not np.allclose(found[0], expected[row], atol=1e-5):
                wrong.append(row)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


def test_a_runtime_names_itself_in_the_fingerprint(backend: Backend) -> None:
    assert set(backend.runtime.describe()) == {"runtime", "providers"}


def test_a_runtime_that_is_not_here_is_not_supported() -> None:
    with pytest.raises(LoadRefused, match="supported: onnx, python, tflite") as refused:
        runtime_named("caffe")
    assert refused.value.code == "not-supported"


@pytest.mark.parametrize(
    "name", ["weights.bin", "./weights.bin", "linked.bin", "hard.bin", "../outside.bin", "absolute"]
)
@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_an_onnx_model_cannot_take_weights_from_a_file(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only verified bytes are loaded. Left alone, onnxruntime takes them from the working directory."""
    folder = tmp_path / "working"
    folder.mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(np.ones(64, dtype=np.float32).tobytes())
    (folder / "weights.bin").write_bytes(outside.read_bytes())
    (folder / "linked.bin").symlink_to(outside)
    (folder / "hard.bin").hardlink_to(outside)
    monkeypatch.chdir(folder)
    model = _with_weights_elsewhere(kind, str(outside) if name == "absolute" else name)
    with pytest.raises(LoadRefused) as refused:
        runtime_named("onnx").load(model, threads=1)
    assert refused.value.code == "load-failed"


def _with_weights_elsewhere(kind: str, location: str) -> bytes:
    elsewhere = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value=location)
    constant = [digits_models.node("Constant", [], ["w"], value=elsewhere)]
    graph = helper.make_graph(
        [*(constant if kind == "constant" else []), digits_models.node("Add", ["image", "w"], ["probabilities"])],
        "elsewhere",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 64])],
        [elsewhere] if kind == "initializer" else [],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def test_text_that_is_not_utf_8_is_the_requests_fault() -> None:
    session = runtime_named("onnx").load(digits_models.echo("BYTES"), threads=1)
    given: Array = np.array([b"\xff"], dtype=object)
    with pytest.raises(InputFault, match="given"):
        session.run({"given": given}, ("answered",))
