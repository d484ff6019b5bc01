"""An accelerator that a variant asks for is what it computes on, or the variant is refused with what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Hardware
from holdfast_worker import accelerators, release_runner
from holdfast_worker.accelerators import Unusable
from holdfast_worker.failures import LoadRefused
from holdfast_worker.release_runner import Outcome, Runner
from support import digits_models, installed_release, tflite_models


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((), ()),
        (("cuda",), ("CUDAExecutionProvider",)),
        (("tensorrt", "cuda"), ("TensorrtExecutionProvider", "CUDAExecutionProvider")),
    ],
)
def test_labels_are_providers_in_their_order(labels: tuple[str, ...], expected: tuple[str, ...]) -> None:
    available = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert accelerators.providers(labels, available) == expected


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("rocm",), "ROCMExecutionProvider is not among the providers of the onnxruntime here (CPUExecutionProvider)"),
        (("coral",), "needs coral, for which onnxruntime has no provider"),
    ],
)
def test_what_has_no_provider_is_named(labels: tuple[str, ...], words: str) -> None:
    with pytest.raises(Unusable, match=words.replace("(", r"\(").replace(")", r"\)")):
        accelerators.providers(labels, ("CPUExecutionProvider",))


Load = Callable[..., Runner]


@pytest.fixture
def load(state: StateFolder) -> Load:
    """A release of one variant that asks for one accelerator, which the device says that it has."""

    def load(label: str, *, runtime: str = "onnx", delegates: dict[str, str] | None = None) -> Runner:
        model = digits_models.trained() if runtime == "onnx" else tflite_models.trained()
        changes: dict[str, Any] = {"hardware": Hardware(accelerators=(label,))}
        ref = installed_release.install(state, "digits", "1.0.0", model, runtime=runtime, variant_changes=changes)
        files = release_runner.read(state.manifests, state.blobs, ref.digest, accelerators=(label,))
        return release_runner.start(files, delegates=delegates or {})

    return load


@pytest.mark.parametrize(
    ("label", "more", "words"),
    [
        ("cuda", {}, "the variant needs cuda: CUDAExecutionProvider is not among"),
        ("coral", {"runtime": "tflite"}, r"\[device.delegates\] in agent.toml names no library of a delegate for it"),
        (
            "coral",
            {"runtime": "tflite", "delegates": {"coral": "/usr/lib/libnone.so"}},
            "the delegate for coral, /usr/lib/libnone.so, cannot be loaded",
        ),
    ],
)
def test_a_variant_whose_accelerator_is_not_there_does_not_compute_on_the_cpu(
    load: Load, label: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(LoadRefused, match=words) as refused:
        load(label, **more)
    assert refused.value.code == "not-supported", "which condemns nothing"


def test_the_provider_is_passed_to_onnxruntime_before_the_cpu_and_told(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one other provider that its package for the CPU has, which computes nothing of this model."""
    monkeypatch.setattr(accelerators, "PROVIDERS", {"cloud": "AzureExecutionProvider"})
    runner = load("cloud")
    assert runner.fingerprint["providers"] == "AzureExecutionProvider,CPUExecutionProvider"
    assert runner.run({"image": digits_models.images()})[1] is Outcome.OK
