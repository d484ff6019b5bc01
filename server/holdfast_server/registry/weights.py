"""Whether the bytes that a runtime will load are what the manifest says: a model of that runtime, with those tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast_shared import model_file
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import ModelVersion, Runtime, Tensor


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of the file that a variant's runtime loads.

    `field` is where it stands, `path` the publisher's name of it.
    """

    field: str
    path: str
    runtime: Runtime
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def declared_in(model: ModelVersion) -> dict[str, Declared]:
    """By digest, every such file of the model; one that several variants share, as the last of them declares it."""
    return dict(all_declared_in(model))


def all_declared_in(model: ModelVersion) -> Iterator[tuple[str, Declared]]:
    """Such a file of every variant, with its digest."""
    for v, variant in enumerate(model.variants):
        for f, file in enumerate(variant.files):
            if file.role in model_file.ROLES[variant.runtime]:
                yield (
                    file.digest,
                    Declared(
                        field=f"variants[{v}].files[{f}]",
                        path=file.path,
                        runtime=variant.runtime,
                        inputs=variant.inputs,
                        outputs=variant.outputs,
                    ),
                )


def check(file: Path, declared: Declared) -> None:
    """Raises Malformed that names the file: it is no model of its runtime, or has other tensors than declared."""
    try:
        wrong = model_file.check(file, declared.runtime, declared.inputs, declared.outputs)
    except Malformed as error:
        raise Malformed(
            f"{declared.path} {error.message}", field=declared.field, next_step=model_file.EXPORTS[declared.runtime]
        ) from error
    if wrong:
        words = "; ".join(one.words for one in wrong)
        raise Malformed(
            f"{declared.path} {words}", field=declared.field, next_step="declare the tensors as the file has them"
        )
