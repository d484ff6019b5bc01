"""The body of an Open Inference Protocol v2 `infer` response, in parts that are sent without being joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from holdfast_shared.wire.release import Tensor
from holdfast_worker import tensors
from holdfast_worker.inference_request import FORMS_MAX, Request
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.tensors import Array

_ERROR_CHARACTERS_MAX: Final = 1000
# Stands for a tensor's data: a byte that JSON never has, in a text or outside.
_PLACE: Final = msgspec.Raw(b"\0")


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int


class _Output(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters | None = None
    data: list[Any] | msgspec.Raw | None = None


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


class Writer:
    """Of the answers of one release. Any number of threads may write.

    What stands before and between tensors follows from their shapes, so it is remembered as a request's form is:
    `inference_request`.
    """

    __slots__ = ("_around", "_declared", "_model", "_version")

    def __init__(self, declared: Mapping[str, Tensor], *, model: str, version: str) -> None:
        self._declared = declared
        self._model = model
        self._version = version
        # By `_kind`: the header of raw tensors, or what stands around each tensor in JSON.
        self._around: dict[tuple[object, ...], bytes | list[bytes]] = {}

    def answered(
        self, request: Request, outputs: Mapping[str, Array], spent_us: dict[str, int] | None = None
    ) -> Response:
        """The asked outputs that there are, and with `spent_us` how long each stage took for them.

        Raises InputFault for an output that JSON cannot hold.
        """
        if request.remembered and spent_us is None:
            found = self._as_before(request, outputs)
            if found is not None:
                return found
        described, raw = self._described(request, outputs)
        said = msgspec.UNSET if spent_us is None else _Said(spent_us)
        named = msgspec.UNSET if request.id is None else request.id
        body = _Body(self._model, self._version, described, named, said)
        header = _encoder.encode(body)
        if request.remembered and spent_us is None and len(described) == len(request.outputs):
            self._remember(request, outputs, body, header)
        return Response(len(header), (header, *raw)) if raw else Response(NO_HEADER, (header,))

    def _as_before(self, request: Request, outputs: Mapping[str, Array]) -> Response | None:
        """With what stood around such an answer before; None when it is another answer."""
        try:
            arrays = [outputs[name] for name, _ in request.outputs]
        except KeyError:  # one is missing: a null, which the answer does not name
            return None
        around = self._around.get(_kind(request, arrays))
        if around is None:
            return None
        if isinstance(around, bytes):
            return Response(len(around), (around, *[tensors.to_bytes(array) for array in arrays]))
        parts = [around[0]]
        for (name, _), array, following in zip(request.outputs, arrays, around[1:], strict=True):
            parts += _encoder.encode(tensors.to_json(name, array)), following
        return Response(NO_HEADER, tuple(parts))

    def _remember(self, request: Request, outputs: Mapping[str, Array], body: _Body, header: bytes) -> None:
        """What does not change with the values: of tensors that are all raw and of one size each, or all in JSON."""
        arrays = [outputs[name] for name, _ in request.outputs]
        raw = {binary for _, binary in request.outputs}
        if len(raw) > 1 or (raw == {True} and any(array.dtype == object for array in arrays)):
            return
        if len(self._around) >= FORMS_MAX:
            self._around.clear()
        if raw == {True}:
            self._around[_kind(request, arrays)] = header
            return
        empty = [msgspec.structs.replace(one, data=_PLACE) for one in body.outputs]
        around = _encoder.encode(msgspec.structs.replace(body, outputs=empty)).split(bytes(_PLACE))
        self._around[_kind(request, arrays)] = around

    def _described(
        self, request: Request, outputs: Mapping[str, Array]
    ) -> tuple[list[_Output], list[bytes | memoryview]]:
        described: list[_Output] = []
        parts: list[bytes | memoryview] = []
        for name, binary in request.outputs:
            array = outputs.get(name)
            if array is None:
                continue  # a null: the answer says so by not having it
            datatype = self._declared[name].datatype
            if binary:
                data = tensors.to_bytes(array)
                parts.append(data)
                described.append(_Output(name, datatype, array.shape, parameters=_Parameters(len(data))))
            else:
                described.append(_Output(name, datatype, array.shape, data=tensors.to_json(name, array)))
        return described, parts


def _kind(request: Request, arrays: list[Array]) -> tuple[object, ...]:
    """All that is said of tensors but their values: each is of its declared datatype, which runtimes see to."""
    return request.outputs, *[array.shape for array in arrays]


def failed(error: Exception) -> Response:
    """`{"error": …}`."""
    return Response(NO_HEADER, (_encoder.encode(_Error(str(error)[:_ERROR_CHARACTERS_MAX])),))
