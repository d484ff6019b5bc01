"""Several stages in one worker: wired by name, run in order, each told apart when it fails or takes its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_cli import manifests
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import Blob, ModelRef, Release, Stage, Tensor
from holdfast_worker.failures import ModelRaised
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.release_runner import Outcome
from holdfast_worker.runtime import runtime_named
from support import digits_models, tflite_models
from support.installed_release import Published, publish, sealed, tensor
from support.loaded_release import loaded, refused

SAMPLES = Path(__file__).parents[2] / "deploy"


def test_stages_are_wired_by_name_and_run_in_order(state: StateFolder) -> None:
    """What an application sends goes into the first, and what the last one answers comes back."""
    runner = loaded(state, _two_stages({"probabilities": "first.half"}))
    image = digits_models.images()[:1]
    answers, outcome = runner.run({"image": image})
    assert outcome is Outcome.OK
    direct = publish("digits", "1.0.1", digits_models.trained())
    expected = loaded(state, direct).run({"image": image * 0.5})[0]
    assert np.allclose(answers["probabilities"], expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("second.probabilities", "second.probabilities is FP32 [-1, 10], the model takes FP32 [-1, 64]"),
        ("first.whole", "stages[1].inputs.image: there is no first.whole"),
        ("elsewhere", "there is no elsewhere"),
    ],
)
def test_a_wire_from_nowhere_fails_to_load(state: StateFolder, source: str, words: str) -> None:
    """Publish refuses it already; a worker takes nobody's word for it."""
    published = _two_stages({"probabilities": source})
    published.install(state)
    found = refused(state, published.ref.digest)
    assert found.code == "load-failed"
    assert words in found.detail


def test_the_sample_pipeline_reads_scanned_digits(state: StateFolder) -> None:
    """Two TFLite stages, whole numbers in: as publish describes them, with each stage's time for whoever asks."""
    built = manifests.build(SAMPLES / "sample-pipeline")
    blobs = {str(digest): path.read_bytes() for digest, path in built.files.items()}
    runner = loaded(state, sealed(built.release, tuple(one.manifest for one in built.models), blobs))
    assert [(one.name, one.datatype) for one in runner.inputs] == [("pixels", "UINT8")]
    pixels = np.round(digits_models.images() * 16).astype(np.uint8)
    spent_us: dict[str, int] = {}
    answers, outcome = runner.run({"pixels": pixels}, spent_us)
    assert outcome is Outcome.OK
    assert (answers["probabilities"].argmax(axis=1) == digits_models.labels()).mean() > 0.9
    assert list(spent_us) == ["scale", "classify"]


def test_the_first_stage_of_another_runtime_feeds_the_second(state: StateFolder) -> None:
    """And the fingerprint names both runtimes."""
    runner = loaded(state, _mixed())
    assert runner.fingerprint["runtime"].split("; ")[0].startswith("ai-edge-litert ")
    assert runner.fingerprint["runtime"].split("; ")[1].startswith("onnxruntime ")
    pixels = np.round(digits_models.images() * 16).astype(np.uint8)
    found = runner.run({"pixels": pixels})[0]["probabilities"]
    assert (found.argmax(axis=1) == digits_models.labels()).mean() > 0.9


def test_an_answer_says_how_long_each_stage_took_to_whoever_asks(state: StateFolder) -> None:
    """Unasked, it says nothing: answers to one request stay equal, byte for byte."""
    runner = loaded(state, _mixed())
    asked: dict[str, Any] = {
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 64], "data": [7] * 64}],
    }
    plain = json.loads(runner.answer(json.dumps(asked).encode(), NO_HEADER, False).body)
    assert "parameters" not in plain
    timed = json.dumps({**asked, "parameters": {"stage_times": True}}).encode()
    said = json.loads(runner.answer(timed, NO_HEADER, False).body)["parameters"]["stage_us"]
    assert list(said) == ["scale", "model"]
    assert all(isinstance(us, int) for us in said.values())


def test_a_stage_that_raises_is_named(state: StateFolder) -> None:
    """Also for input that its own runtime calls a request's fault: another stage fed it."""
    runner = loaded(state, _mixed(raises=True))
    two = np.zeros((2, 64), np.uint8)
    with pytest.raises(ModelRaised, match=r"^stage model: "):
        runner.run({"pixels": two})


def _mixed(*, raises: bool = False) -> Published:
    """Scaled by TFLite, classified by ONNX."""
    model = digits_models.raises_on_two() if raises else digits_models.trained()
    pixels = (Tensor(name="pixels", datatype="UINT8", shape=(-1, 64)),)
    image = (Tensor(name="image", datatype="FP32", shape=(-1, 64)),)
    first = publish("scaler", "1.0.0", tflite_models.scale(), runtime="tflite", inputs=pixels, outputs=image, golden=[])
    second = publish("digits", "1.0.0", model)
    case = {
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 64], "data": [0] * 64}],
        "outputs": [tensor("probabilities", _answer_to_nothing(model))],
    }
    cases = json.dumps({"cases": [case]}).encode()
    release = msgspec.structs.replace(
        second.release,
        stages=(
            Stage(name="scale", model=_reference(first), inputs={"pixels": "request.pixels"}),
            Stage(name="model", model=_reference(second), inputs={"image": "scale.image"}),
        ),
        self_test=msgspec.structs.replace(
            second.release.self_test, blob=Blob(digest=digest_of(cases), size_bytes=len(cases))
        ),
    )
    blobs = {**first.blobs, **second.blobs, digest_of(cases): cases}
    return sealed(release, (*first.models, *second.models), blobs)


def _answer_to_nothing(model: bytes) -> Any:
    session = runtime_named("onnx").load(model, threads=1)
    return session.run({"image": np.zeros((1, 64), np.float32)}, ("probabilities",))["probabilities"]


def _two_stages(wire: dict[str, str]) -> Published:
    half = digits_models.model(
        [digits_models.node("Mul", ["image", "by"], ["half"])],
        constants={"by": np.float32(0.5)},
        outputs=[digits_models.pixels("half")],
    )
    outputs = (Tensor(name="half", datatype="FP32", shape=(-1, 64)),)
    first = publish("halver", "1.0.0", half, outputs=outputs, golden=[])
    second = publish("digits", "1.0.0", digits_models.trained())
    image = digits_models.images()[:1]
    cases = json.dumps(
        {
            "cases": [
                {
                    "inputs": [tensor("image", image)],
                    "outputs": [tensor("probabilities", _direct(image * 0.5))],
                }
            ]
        }
    ).encode()
    release: Release = msgspec.structs.replace(
        second.release,
        stages=(
            Stage(name="first", model=_reference(first), inputs={"image": "request.image"}),
            Stage(name="second", model=_reference(second), inputs={"image": wire["probabilities"]}),
        ),
        outputs={"probabilities": "second.probabilities"},
        self_test=msgspec.structs.replace(
            second.release.self_test,
            blob=msgspec.structs.replace(second.release.self_test.blob, digest=digest_of(cases), size_bytes=len(cases)),
        ),
    )
    return sealed(
        release, (*first.models, *second.models), {**first.blobs, **second.blobs, str(digest_of(cases)): cases}
    )


def _reference(published: Published) -> ModelRef:
    return published.release.stages[0].model


def _direct(image: Any) -> Any:
    import onnxruntime

    (answer,) = onnxruntime.InferenceSession(digits_models.trained()).run(["probabilities"], {"image": image})
    return answer
