"""The body of an Open Inference Protocol v2 `infer` response, in parts that are sent without being joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from holdfast_shared.wire.release import Tensor
from holdfast_worker import tensors
from holdfast_worker.inference_request import Request
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.tensors import Array

_ERROR_CHARACTERS_MAX: Final = 1000


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int


class _Output(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters | None = None
    data: list[Any] | None = None


class _Said(msgspec.Struct, frozen=True):
    stage_us: dict[str, int]


class _Body(msgspec.Struct, frozen=True):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: _Said | msgspec.UnsetType = msgspec.UNSET


class _Error(msgspec.Struct, frozen=True):
    error: str


class Response(NamedTuple):
    """`header_length` is what Inference-Header-Content-Length must say, or NO_HEADER when the whole body is JSON."""

    header_length: int
    parts: tuple[bytes | memoryview, ...]


_encoder: Final = msgspec.json.Encoder()


def answered(
    request: Request,
    outputs: Mapping[str, Array],
    declared: Mapping[str, Tensor],
    *,
    model: str,
    version: str,
    spent_us: dict[str, int] | None = None,
) -> Response:
    """The asked outputs that there are, and with `spent_us` how long each stage took for them.

    Raises InputFault for an output that JSON cannot hold.
    """
    described: list[_Output] = []
    raw: list[bytes | memoryview] = []
    for name, binary in request.outputs:
        array = outputs.get(name)
        if array is None:
            continue  # a null: the answer says so by not having it
        if binary:
            data = tensors.to_bytes(array)
            raw.append(data)
            described.append(_Output(name, declared[name].datatype, array.shape, parameters=_Parameters(len(data))))
        else:
            described.append(_Output(name, declared[name].datatype, array.shape, data=tensors.to_json(name, array)))
    said = msgspec.UNSET if spent_us is None else _Said(spent_us)
    answer = _Body(model, version, described, msgspec.UNSET if request.id is None else request.id, said)
    header = _encoder.encode(answer)
    return Response(len(header), (header, *raw)) if raw else Response(NO_HEADER, (header,))


def failed(error: Exception) -> Response:
    """`{"error": …}`."""
    return Response(NO_HEADER, (_encoder.encode(_Error(str(error)[:_ERROR_CHARACTERS_MAX])),))
