"""What a model's own file says against what its manifest declares, for each runtime's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_shared import callable_file, onnx_file, tflite_file
from holdfast_shared.tensor_forms import FileTensor, FileTensors, may_be, may_feed
from holdfast_shared.wire.release import FileRole, Runtime, Tensor

READERS: Final[Mapping[Runtime, Callable[[Path], FileTensors | None]]] = {
    "onnx": onnx_file.tensors_in,
    "tflite": tflite_file.tensors_in,
    "python": callable_file.check,
}
# What a publisher does to have one.
EXPORTS: Final[Mapping[Runtime, str]] = {
    "onnx": "export the model as ONNX",
    "tflite": "export the model as TFLite",
    "python": "name the function that the environment's wheels bring",
}
# The roles of which a variant has exactly one file, which is the one that its runtime loads.
ROLES: Final[Mapping[Runtime, tuple[FileRole, ...]]] = {
    "onnx": ("weights",),
    "tflite": ("weights",),
    "python": ("preprocessing", "serving"),
}


class Contradiction(NamedTuple):
    """`field` is within the variant: `inputs[0].datatype`; `words` go behind the file's name."""

    field: str
    words: str


def check(path: Path, runtime: Runtime, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Contradiction]:
    """Every contradiction between the file and what is declared. Raises Malformed when it is no file of that runtime."""
    there = READERS[runtime](path)
    return contradictions(there, inputs, outputs) if there is not None else []


def contradictions(there: FileTensors, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Contradiction]:
    """Every one. The model must be asked with all of its tensors; of its answers some may stay unused."""
    found = _against("inputs", there.inputs, inputs)
    unasked = sorted({tensor.name for tensor in there.inputs} - {tensor.name for tensor in inputs})
    if unasked:
        found.append(Contradiction("inputs", f"also needs {', '.join(unasked)}"))
    return found + _against("outputs", there.outputs, outputs)


def _against(kind: str, there: Sequence[FileTensor], declared: Sequence[Tensor]) -> list[Contradiction]:
    known = {tensor.name: tensor for tensor in there}
    found = []
    for index, tensor in enumerate(declared):
        here, real = f"{kind}[{index}]", known.get(tensor.name)
        if real is None:
            has = ", ".join(sorted(known)) or "none"
            found.append(Contradiction(f"{here}.name", f"has no {kind[:-1]} {tensor.name!r}; it has {has}"))
            continue
        if real.datatype not in (None, tensor.datatype):
            found.append(
                Contradiction(f"{here}.datatype", f"has {tensor.name!r} as {real.datatype}, not {tensor.datatype}")
            )
        fits = may_feed(tensor.shape, real.shape or ()) if kind == "inputs" else may_be(real.shape or (), tensor.shape)
        if real.shape is not None and not fits:
            words = f"has {tensor.name!r} with shape {list(real.shape)}, not {list(tensor.shape)}"
            found.append(Contradiction(f"{here}.shape", words))
    return found
