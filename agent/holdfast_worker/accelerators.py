"""What an accelerator's label means to a runtime: the execution provider or the delegate that computes on it, or why none can.

A label that a variant asks for is kept or refused, never computed on the CPU instead: whoever published it measured it there.
Pure: whoever asks has looked what is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

# onnxruntime's names, by the label that a device and a variant say. Each is in a build of onnxruntime of its own.
PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cann": "CANNExecutionProvider",
        "coreml": "CoreMLExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "migraphx": "MIGraphXExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
        "qnn": "QNNExecutionProvider",
        "rocm": "ROCMExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
    }
)
NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Unusable(Exception):
    """In words: what was asked for, and what is missing."""


def providers(labels: Iterable[str], available: Collection[str]) -> tuple[str, ...]:
    """Of onnxruntime, in the order of the labels. Raises Unusable for the first that this onnxruntime does not have."""
    found = []
    for label in labels:
        provider = PROVIDERS.get(label)
        if provider is None:
            raise Unusable(f"needs {label}, for which onnxruntime has no provider; known are {', '.join(PROVIDERS)}")
        if provider not in available:
            here = ", ".join(available)
            raise Unusable(f"needs {label}: {provider} is not among the providers of the onnxruntime here ({here})")
        found.append(provider)
    return tuple(found)


def delegates(labels: Iterable[str], configured: Mapping[str, str]) -> tuple[str, ...]:
    """The libraries of TFLite delegates, in the order of the labels. Raises Unusable for the first that none is named for."""
    found = []
    for label in labels:
        if label not in configured:
            raise Unusable(f"needs {label}: [device.delegates] in agent.toml names no library of a delegate for it")
        found.append(configured[label])
    return tuple(found)


def unusable(
    labels: Iterable[str], available: Collection[str], configured: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """By runtime and label, why a variant of that runtime cannot have it here."""
    found: dict[str, dict[str, str]] = {"onnx": {}, "tflite": {}}
    for label in labels:
        try:
            providers((label,), available)
        except Unusable as why:
            found["onnx"][label] = str(why)
        try:
            delegates((label,), configured)
        except Unusable as why:
            found["tflite"][label] = str(why)
    return found
