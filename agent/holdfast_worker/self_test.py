"""The self-test: a release's golden cases, asked of the loaded model. Running them is also the warm-up."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from holdfast_shared.golden_cases import CASES_MAX
from holdfast_shared.wire.release import Datatype, SelfTest
from holdfast_worker import tensors
from holdfast_worker.failures import InputFault, LoadRefused, ModelRaised
from holdfast_worker.stages import Stages
from holdfast_worker.tensors import Array


class _Golden(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=8)]
    data: msgspec.Raw


class _Case(msgspec.Struct, frozen=True):
    inputs: tuple[_Golden, ...]
    outputs: Annotated[tuple[_Golden, ...], msgspec.Meta(min_length=1)]


class _Cases(msgspec.Struct, frozen=True):
    cases: Annotated[tuple[_Case, ...], msgspec.Meta(min_length=1, max_length=CASES_MAX)]


def check(stages: Stages, described: SelfTest, raw: bytes) -> int:
    """How many cases passed: all of them. Raises LoadRefused that names the first wrong case and tensor."""
    try:
        cases = msgspec.json.decode(raw, type=_Cases).cases
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadRefused("self-test-failed", f"the cases cannot be read: {error}") from error
    declared = {tensor.name: tensor for tensor in stages.inputs}
    for number, case in enumerate(cases):
        where = f"cases[{number}]"
        try:
            asked = {tensor.name: _array(tensor) for tensor in case.inputs}
            for tensor in case.inputs:
                expected = declared.get(tensor.name)
                if expected is None or expected.datatype != tensor.datatype:
                    raise InputFault(f"tensor {tensor.name} ({tensor.datatype}) is no input of the release")
            answered = stages.run(asked)
            for tensor in case.outputs:
                _compare(tensor, answered.get(tensor.name), described)
        except InputFault as error:
            raise LoadRefused("self-test-failed", f"{where}: {error}") from error
        except ModelRaised as error:
            raise LoadRefused("self-test-failed", f"{where}: the model raised: {error}") from error
        except _Differs as error:
            raise LoadRefused("self-test-failed", f"{where}: output {error}") from error
    return len(cases)


class _Differs(Exception):
    pass


def _array(tensor: _Golden) -> Array:
    return tensors.from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _compare(golden: _Golden, answer: Array | None, described: SelfTest) -> None:
    expected = _array(golden)
    if answer is None:
        raise _Differs(f"{golden.name} is missing")
    if answer.dtype != expected.dtype or answer.shape != expected.shape:
        raise _Differs(
            f"{golden.name} is {answer.dtype} {list(answer.shape)}, expected {expected.dtype} {list(expected.shape)}"
        )
    if expected.dtype.kind == "f":
        # |answer − expected| ≤ absolute + relative · |expected|; false wherever the answer is not finite.
        wanted = expected.astype(np.float64)
        close = np.isclose(
            answer.astype(np.float64), wanted, rtol=described.relative_tolerance, atol=described.absolute_tolerance
        )
    else:
        close = _near_integers(answer, expected, described)
    if not close.all():
        index = int(np.argmin(close.ravel()))
        raise _Differs(
            f"{golden.name}[{index}] is {answer.ravel()[index]}, expected {expected.ravel()[index]}"
            f" (tolerances: absolute {described.absolute_tolerance:g}, relative {described.relative_tolerance:g})"
        )


def _near_integers(answer: Array, expected: Array, described: SelfTest) -> Array:
    """Equal, or within the tolerances, in Python's whole numbers: those of 64 bits are not all floats."""
    same: Array = np.asarray(answer == expected)
    if expected.dtype.kind not in "iu" or same.all():
        return same
    absolute, relative = described.absolute_tolerance, described.relative_tolerance
    pairs = zip(answer.ravel().tolist(), expected.ravel().tolist(), strict=True)
    near: Array = np.array([abs(found - wanted) <= absolute + relative * abs(wanted) for found, wanted in pairs])
    return near.reshape(same.shape)
