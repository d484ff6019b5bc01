"""Whether the bytes behind a variant's weights are what the manifest says: an ONNX model with those inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from holdfast_shared import onnx_file
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import ModelVersion


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's manifest says of one weights file: `field` is where, `path` the publisher's name of the file."""

    field: str
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def declared_in(model: ModelVersion) -> dict[str, Declared]:
    """By digest, every weights file of the model."""
    return {
        file.digest: Declared(
            field=f"variants[{v}].files[{f}]",
            path=file.path,
            inputs=tuple(tensor.name for tensor in variant.inputs),
            outputs=tuple(tensor.name for tensor in variant.outputs),
        )
        for v, variant in enumerate(model.variants)
        for f, file in enumerate(variant.files)
        if file.role == "weights"
    }


def check(file: Path, declared: Declared) -> None:
    """Raises Malformed that names the file: it is no ONNX model, or has other inputs and outputs."""
    try:
        names = onnx_file.names_in(file)
    except Malformed as error:
        raise Malformed(
            f"{declared.path} {error.message}", field=declared.field, next_step="export the model as ONNX"
        ) from error
    if names.inputs != set(declared.inputs):
        raise _other("inputs", declared, names.inputs)
    if not set(declared.outputs) <= names.outputs:
        raise _other("outputs", declared, names.outputs)


def _other(what: str, declared: Declared, found: frozenset[str]) -> Malformed:
    said = getattr(declared, what)
    return Malformed(
        f"{declared.path} has the {what} {', '.join(sorted(found)) or 'none'}; declared are {', '.join(said)}",
        field=declared.field,
        next_step="declare the tensors as the file names them",
    )
