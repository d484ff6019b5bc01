"""What may be loaded: exactly the bytes that the digest vouches for, in the form the manifest declares, answering as promised."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_cli import manifests
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import Hardware, Tensor
from holdfast_worker import fingerprint, installed, release_files, release_runner
from holdfast_worker.failures import LoadRefused
from holdfast_worker.release_files import Folders
from holdfast_worker.release_runner import Outcome
from holdfast_worker.runtime import runtime_named
from support import descriptors, digits_models, tflite_models
from support.installed_release import Published, golden_cases, install, publish, sealed, tensor
from support.loaded_release import loaded, refused, refused_release

SAMPLES = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def published(state: StateFolder) -> Published:
    made = publish("digits", "1.0.0", digits_models.trained())
    made.install(state)
    return made


def test_a_release_that_verifies_is_loaded_and_says_what_it_is(state: StateFolder, published: Published) -> None:
    runner = release_runner.load(state.manifests, state.blobs, published.ref.digest)
    assert (runner.pipeline, runner.version, runner.digest) == ("digits", "1.0.0", published.ref.digest)
    assert runner.inputs == digits_models.INPUTS
    assert runner.outputs == digits_models.OUTPUTS
    assert runner.self_test_cases == 2
    answers, outcome = runner.run({"image": digits_models.images()})
    assert outcome is Outcome.OK
    assert (answers["probabilities"].argmax(axis=1) == digits_models.labels()).mean() > 0.9


def test_the_fingerprint_tells_runtime_and_machine_apart(state: StateFolder, published: Published) -> None:
    found = release_runner.load(state.manifests, state.blobs, published.ref.digest).fingerprint
    assert found["runtime"].startswith("onnxruntime ")
    assert found["numpy"] == np.__version__
    assert set(found) == {"runtime", "providers", "numpy", "python", "os", "kernel", "machine", "cpu_flags"}
    assert all(isinstance(value, str) for value in found.values())
    assert found["kernel"] == f"{os.uname().sysname} {os.uname().release}"
    assert found["machine"] == os.uname().machine


def test_another_processor_is_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes choose their kernels by its flags; their order says nothing."""
    found = []
    for flags in ("fpu sse2 avx512f", "avx512f sse2 fpu", "fpu sse2"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
        monkeypatch.setattr(fingerprint, "_CPU_INFORMATION", tmp_path / "cpuinfo")
        found.append(fingerprint.measure([])["cpu_flags"])
    monkeypatch.undo()
    assert found[0] == found[1] != found[2]
    here = fingerprint.measure([])["cpu_flags"]
    assert here not in ("", *found), "this machine's own, which is none of these"


def test_the_sample_that_ships_is_loaded_as_publish_describes_it(state: StateFolder) -> None:
    """The operator's command and the worker agree on what a manifest means."""
    built = manifests.build(SAMPLES / "sample-release")
    blobs = {str(digest): path.read_bytes() for digest, path in built.files.items()}
    runner = loaded(state, sealed(built.release, (built.models[0].manifest,), blobs))
    assert (runner.pipeline, runner.self_test_cases) == ("iris", 3)


def test_a_tflite_release_is_loaded_and_answers_as_the_onnx_one_does(state: StateFolder, published: Published) -> None:
    """One trained model in two formats: the runtime is the variant's business, not the application's."""
    runner = loaded(state, publish("digits", "2.0.0", tflite_models.trained(), runtime="tflite"))
    assert (runner.inputs, runner.outputs) == (digits_models.INPUTS, digits_models.OUTPUTS)
    assert runner.fingerprint["runtime"].startswith("ai-edge-litert ")
    assert runner.fingerprint["providers"] == "XNNPACK,CPU"
    request = {"image": digits_models.images()}
    other = release_runner.load(state.manifests, state.blobs, published.ref.digest)
    assert np.allclose(runner.run(request)[0]["probabilities"], other.run(request)[0]["probabilities"], atol=1e-5)


def test_a_quantised_model_takes_and_answers_whole_numbers(state: StateFolder) -> None:
    inputs = (Tensor(name="image", datatype="INT8", shape=(-1, 64)),)
    outputs = (Tensor(name="scores", datatype="INT8", shape=(-1, 10)),)
    details: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "golden": _whole_cases(), "runtime": "tflite"}
    runner = loaded(state, publish("digits", "2.0.0", tflite_models.quantised(), **details))
    image = np.round(digits_models.images() * 127).astype(np.int8)
    scores = runner.run({"image": image})[0]["scores"]
    assert scores.dtype == np.int8
    assert (scores.argmax(axis=1) == digits_models.labels()).mean() > 0.9


def _whole_cases() -> list[dict[str, Any]]:
    image = np.round(digits_models.images()[:1] * 127).astype(np.int8)
    session = runtime_named("tflite").load(tflite_models.quantised(), threads=1)
    scores = session.run({"image": image}, ("scores",))["scores"]
    return [
        {
            "inputs": [{"name": "image", "datatype": "INT8", "shape": [1, 64], "data": image.ravel().tolist()}],
            "outputs": [{"name": "scores", "datatype": "INT8", "shape": [1, 10], "data": scores.ravel().tolist()}],
        }
    ]


# ---------------------------------------------------------------- bytes on disk
def test_a_flipped_bit_anywhere_in_any_file_is_damage(state: StateFolder, published: Published) -> None:
    """In each region of each blob, and of each manifest's payload: nothing is loaded that was not vouched for."""
    for digest, blob in published.blobs.items():
        for position in sorted({0, 1, len(blob) // 3, len(blob) // 2, len(blob) - 2, len(blob) - 1}):
            changed = bytearray(blob)
            changed[position] ^= 0x10
            state.blob(digest).write_bytes(changed)
            assert refused(state, published.ref.digest).code == "damaged-blob"
        state.blob(digest).write_bytes(blob)
    for digest, envelope in published.manifests.items():
        start = envelope.index(b'"payload":"') + len(b'"payload":"')
        for position in (start, start + 1, start + 200):
            changed = bytearray(envelope)
            changed[position] = ord("B") if changed[position] != ord("B") else ord("C")
            state.manifest(digest).write_bytes(changed)
            assert refused(state, published.ref.digest).code == "damaged-blob"
        state.manifest(digest).write_bytes(envelope)
    release_runner.load(state.manifests, state.blobs, published.ref.digest)


@pytest.mark.parametrize("change", ["cut", "longer", "empty", "missing", "a folder", "a link", "a pipe"])
def test_a_file_of_another_length_or_kind_is_damage(state: StateFolder, published: Published, change: str) -> None:
    """Links too: what is loaded lies in the store itself."""
    for path in (*map(state.blob, published.blobs), *map(state.manifest, published.manifests)):
        whole = path.read_bytes()
        path.unlink()
        if change == "cut":
            path.write_bytes(whole[:-1])
        elif change == "longer":
            path.write_bytes(whole + b"\x00")
        elif change == "empty":
            path.write_bytes(b"")
        elif change == "a folder":
            path.mkdir()
        elif change == "a pipe":
            os.mkfifo(path)
        elif change == "a link":
            elsewhere = state.root / "elsewhere"
            elsewhere.write_bytes(whole)
            path.symlink_to(elsewhere)
        assert refused(state, published.ref.digest).code == "damaged-blob"
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    release_runner.load(state.manifests, state.blobs, published.ref.digest)


def test_what_the_system_will_not_have_read_is_no_damage(state: StateFolder, published: Published) -> None:
    """Whole or not, nobody knows: fetching it again would cost a download for nothing."""
    folders, here = Folders(state.manifests, state.blobs), installed.machine()
    with descriptors.none_left(), pytest.raises(LoadRefused) as found:
        release_files.read(folders, published.ref.digest, environment="system", machine=here)
    assert found.value.code == "unreadable"
    assert os.strerror(errno.EMFILE) in found.value.detail


def test_another_releases_manifest_under_the_digest_is_damage(state: StateFolder, published: Published) -> None:
    other = publish("digits", "2.0.0", digits_models.trained(1.0))
    other.install(state)
    state.manifest(published.ref.digest).write_bytes(other.manifests[other.ref.digest])
    assert refused(state, published.ref.digest).code == "damaged-blob"


def test_a_release_that_is_not_here_is_damage(state: StateFolder) -> None:
    assert refused(state, digest_of(b"nothing")).code == "damaged-blob"


# ---------------------------------------------------------------- what the manifest promises
@pytest.mark.parametrize("model", [b"not a model", b"\x08\x09"])
def test_a_file_that_is_not_onnx_fails_to_load(state: StateFolder, model: bytes) -> None:
    found = refused_release(state, model, golden=[])
    assert found.code == "load-failed"
    assert "onnxruntime refuses the model" in found.detail


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([("image", "FP32", (-1, 63))], None, "input image: the model has shape [-1, 64], declared [-1, 63]"),
        ([("image", "FP32", (-1, -1))], None, "the model has shape [-1, 64], declared [-1, -1]"),
        ([("image", "FP32", (64,))], None, "declared [64]"),
        ([("image", "FP64", (-1, 64))], None, "the model has FP32, declared FP64"),
        ([("picture", "FP32", (-1, 64))], None, "input picture: the model has image"),
        (None, [("label", "INT64", (-1,))], "output label: the model has probabilities"),
        (None, [("probabilities", "FP32", (-1, 11))], "the model has shape [-1, 10], declared [-1, 11]"),
        (None, [("probabilities", "FP16", (-1, 10))], "the model has FP32, declared FP16"),
    ],
)
def test_a_manifest_that_contradicts_its_model_fails_to_load(
    state: StateFolder, inputs: list[Any] | None, outputs: list[Any] | None, words: str
) -> None:
    found = refused_release(
        state,
        digits_models.trained(),
        inputs=_tensors(inputs) or digits_models.INPUTS,
        outputs=_tensors(outputs) or digits_models.OUTPUTS,
    )
    assert found.code == "load-failed"
    assert words in found.detail


@pytest.mark.parametrize("changed", [{"version": "9.9.9"}, {"name": "faces"}])
def test_a_digest_that_is_another_model_than_the_release_says_fails_to_load(
    state: StateFolder, changed: dict[str, str]
) -> None:
    """Its publisher signed both, and one of them is wrong: nobody guesses which."""
    (stage,) = publish("digits", "1.0.0", digits_models.trained()).release.stages
    wrong = msgspec.structs.replace(stage, model=msgspec.structs.replace(stage.model, **changed))
    found = refused_release(state, digits_models.trained(), release_changes={"stages": (wrong,)})
    assert found.code == "load-failed"
    assert "the manifest of that digest is digits 1.0.0" in found.detail


def test_an_input_that_the_manifest_lacks_fails_to_load(state: StateFolder) -> None:
    model = digits_models.model(
        [digits_models.node("Add", ["image", "more"], ["probabilities"])],
        inputs=[digits_models.pixels("image"), digits_models.pixels("more")],
        outputs=[digits_models.pixels("probabilities")],
    )
    outputs = (Tensor(name="probabilities", datatype="FP32", shape=(-1, 64)),)
    found = refused_release(state, model, outputs=outputs, golden=[])
    assert "input more: the model needs it, the manifest lacks it" in found.detail


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"critical": ("watermark",)}, "not-supported", "watermark"),
        ({"environments": (digest_of(b"wheels"),)}, "not-supported", "validated in sha256:"),
        ({"outputs": {"probabilities": "model.label"}}, "load-failed", "there is no model.label"),
        ({"sentinels": {"label": 0.0}}, "load-failed", "sentinels.label is no output"),
    ],
)
def test_a_release_that_asks_for_more_than_we_have_is_refused(
    state: StateFolder, changes: dict[str, Any], code: str, words: str
) -> None:
    found = refused_release(state, digits_models.trained(), release_changes=changes)
    assert found.code == code
    assert words in found.detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime": "python"}, "needs the runtime python; installed here: onnx, tflite"),
        ({"hardware": Hardware(architectures=("vax",))}, "model digits runs on vax; this is "),
        ({"hardware": Hardware(accelerators=("npu",))}, "needs npu; here: none"),
    ],
)
def test_a_variant_for_other_hardware_is_not_supported(state: StateFolder, changes: dict[str, Any], words: str) -> None:
    found = refused_release(state, digits_models.trained(), variant_changes=changes)
    assert found.code == "not-supported"
    assert words in found.detail


def test_a_worker_that_does_not_run_in_the_environment_says_so(state: StateFolder) -> None:
    """It was told one, and its prefix is another: whoever started it mixed them up."""
    wheels = digest_of(b"wheels")
    ref = install(state, "digits", "1.0.0", digits_models.trained(), release_changes={"environments": (wheels,)})
    found = refused(state, ref.digest, environment=wheels)
    assert found.code == "not-supported"
    assert f"not in the environment {wheels}" in found.detail


# ---------------------------------------------------------------- the self-test
def _case(values: Any, **output: Any) -> dict[str, Any]:
    image = digits_models.images()[:1]
    return {
        "inputs": [tensor("image", image)],
        "outputs": [{**tensor("probabilities", np.asarray(values, np.float32)), **output}],
    }


def test_the_first_golden_answer_that_differs_is_named(state: StateFolder) -> None:
    good, wrong = golden_cases(digits_models.trained())
    wrong["outputs"][0]["data"][3] += 0.01
    found = refused_release(state, digits_models.trained(), golden=[good, wrong])
    assert found.code == "self-test-failed"
    assert found.detail.startswith("cases[1]: output probabilities[3] is ")


def test_a_tolerance_is_what_the_publisher_says(state: StateFolder) -> None:
    cases = golden_cases(digits_models.trained())
    cases[0]["outputs"][0]["data"][3] += 0.01
    install_ref = install(state, "digits", "1.0.0", digits_models.trained(), golden=cases, tolerance=0.02)
    release_runner.load(state.manifests, state.blobs, install_ref.digest)


@pytest.mark.parametrize(
    ("model", "row"),
    [
        (digits_models.nan_on_some, "NaN"),
        (digits_models.infinite_on_some, "inf"),
        (digits_models.empty_on_some, "empty"),
    ],
)
def test_a_null_is_never_a_golden_answer(state: StateFolder, model: Any, row: str) -> None:
    blank = digits_models.blank_images()[:1]
    case = {"inputs": [tensor("image", blank)], "outputs": _case(np.ones((1, 10)))["outputs"]}
    found = refused_release(state, model(), golden=[case], tolerance=1e9)
    assert found.code == "self-test-failed"


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"cases": []}', "$.cases"),
        ([{"inputs": [], "outputs": []}], "outputs"),
        ([{"inputs": [], "outputs": _case([[1.0]])["outputs"]}], "stage model lacks request.image"),
        ([_case(np.ones((1, 10)), name="label")], "output label is missing"),
        ([_case(np.ones((1, 9)))], "expected float32 [1, 9]"),
        ([_case(np.ones((1, 10)), data=["a"] * 10)], "tensor probabilities: data of FP32"),
    ],
)
def test_golden_cases_that_cannot_be_asked_fail_the_self_test(state: StateFolder, golden: Any, words: str) -> None:
    found = refused_release(state, digits_models.trained(), golden=golden)
    assert found.code == "self-test-failed"
    assert words in found.detail


def test_a_model_that_raises_fails_the_self_test(state: StateFolder) -> None:
    two = digits_models.images()[:2]
    case = {"inputs": [tensor("image", two)], "outputs": [tensor("probabilities", np.ones((2, 10), np.float32))]}
    found = refused_release(state, digits_models.raises_on_two(), golden=[case])
    assert found.code == "self-test-failed"
    assert found.detail.startswith("cases[0]: the model raised: ")


def _tensors(described: list[Any] | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=name, datatype=datatype, shape=shape) for name, datatype, shape in described or [])


def test_importing_the_runner_brings_in_nothing_of_the_agent() -> None:
    """A worker is handed what it needs; it imports neither agent nor gateway, and no keys."""
    import subprocess
    import sys

    code = (
        "import sys, holdfast_worker.release_runner, holdfast_worker.main, holdfast_worker.onnx_runtime\n"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('holdfast_agent', 'holdfast_gateway', 'holdfast_server', 'cryptography', 'asyncio', 'paho')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_path_is_asked_of_the_caller(tmp_path: Path) -> None:
    """A worker reads from the two folders it was told and from nowhere else."""
    state = StateFolder(tmp_path / "one")
    ref = install(state, "digits", "1.0.0", digits_models.trained())
    moved = StateFolder(tmp_path / "two")
    state.root.rename(moved.root)
    release_runner.load(moved.manifests, moved.blobs, ref.digest)
