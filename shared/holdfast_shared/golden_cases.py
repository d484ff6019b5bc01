"""The self-test's cases: golden inputs and outputs in the Open Inference Protocol's JSON tensors, checked against the model's
declared tensors before anything is uploaded. A case that cannot be asked would condemn a good release on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import Datatype, Tensor

SIZE_BYTES_MAX: Final = 16 * 1024**2
CASES_MAX: Final = 1000


class GoldenTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data` is flat or nested, row by row."""

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data: list[Any]


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: Annotated[tuple[GoldenTensor, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[GoldenTensor, ...], msgspec.Meta(min_length=1)]


class Cases(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cases: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1, max_length=CASES_MAX)]


def faults_in(raw: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[str]:
    """What is wrong with the cases file, each with its place in it."""
    try:
        cases = strict_json.decode(raw, Cases, what="the cases file", size_bytes_max=SIZE_BYTES_MAX, depth_max=16).cases
    except Malformed as error:
        return [error.message + (f" (at {error.field})" if error.field else "")]
    found: list[str] = []
    for index, case in enumerate(cases):
        found += _side(case.inputs, inputs, f"cases[{index}].inputs", complete=True)
        found += _side(case.outputs, outputs, f"cases[{index}].outputs", complete=False)
    return found


def _side(given: Sequence[GoldenTensor], declared: Sequence[Tensor], where: str, *, complete: bool) -> list[str]:
    known = {tensor.name: tensor for tensor in declared}
    found = []
    for index, tensor in enumerate(given):
        here = f"{where}[{index}] ({tensor.name})"
        expected = known.get(tensor.name)
        if expected is None:
            found.append(f"{here}: no such tensor; declared are {', '.join(known)}")
            continue
        if tensor.datatype != expected.datatype:
            found.append(f"{here}: datatype {tensor.datatype}, declared {expected.datatype}")
        if not _fits(tensor.shape, expected.shape):
            found.append(f"{here}: shape {list(tensor.shape)}, declared {list(expected.shape)}")
        count = _leaves(tensor.data)
        if count != math.prod(tensor.shape):
            found.append(f"{here}: {count} values, its shape {list(tensor.shape)} has {math.prod(tensor.shape)}")
    missing = known.keys() - {tensor.name for tensor in given}
    if complete and missing:
        found.append(f"{where}: {', '.join(sorted(missing))} is missing")
    return found


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        expected in (-1, size) for size, expected in zip(shape, declared, strict=True)
    )


def _leaves(value: Any) -> int:
    return sum(_leaves(item) for item in value) if isinstance(value, list) else 1
