"""The body of an Open Inference Protocol v2 `infer` request: JSON, with raw tensors behind it or without.

Everything is checked here against the release's declared inputs; each refusal is one sentence that names the tensor.

Clients ask in the same form again and again: where all tensors are raw, the JSON before them is the same bytes every time,
and where one tensor is JSON, all but its numbers is. So what was checked once is remembered with what follows from it. On the
path of a small request, what costs is less the work than the code that it goes through: between two requests all of it has
left the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np

from holdfast_shared.wire.release import Tensor
from holdfast_worker import tensors
from holdfast_worker.failures import InputFault
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.tensors import Array

# As many as a manifest may declare; more can only be repetitions.
_TENSORS_MAX: Final = 64
_NAME_CHARACTERS_TOLD: Final = 64
# Forms that are remembered, and how long a header may be: a few applications, each with a form or two.
FORMS_MAX: Final = 64
TEXT_FORMS_MAX: Final = 8  # each is compared with a request in turn
_FORM_BYTES_MAX: Final = 2048
# Of more numbers, reading them is what takes the time.
_TEXT_BYTES_MAX: Final = 64 * 1024
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _InputParameters(msgspec.Struct, frozen=True):
    binary_data_size: _Count | None = None
    shared_memory_region: Any = None


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=8)]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: _InputParameters | None = None


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: Any = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_output: bool | None = None
    stage_times: bool = False


class _Body(msgspec.Struct, frozen=True):
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1, max_length=_TENSORS_MAX)]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=_TENSORS_MAX)] | None = None


class Request(NamedTuple):
    """What is asked: tensors by name, and which outputs, each with whether its data is to be binary.

    `stage_times`: whether the answer is to say how long each stage computed. `remembered`: it came in a form that came before.
    """

    id: str | None
    tensors: dict[str, Array]
    outputs: tuple[tuple[str, bool], ...]
    stage_times: bool = False
    remembered: bool = False


class _Place(NamedTuple):
    """Where a raw tensor lies behind the header."""

    name: str
    dtype: np.dtype[Any]
    elements: int
    offset_bytes: int
    shape: tuple[int, ...]


class _Form(NamedTuple):
    """What a header says of every body that begins with it. All tensors are raw numbers, and it has no id."""

    places: tuple[_Place, ...]
    tensors_bytes: int
    outputs: tuple[tuple[str, bool], ...]
    stage_times: bool

    def read(self, body: memoryview, header_length: int) -> Request:
        found: dict[str, Array] = {}
        for name, dtype, elements, offset_bytes, shape in self.places:
            found[name] = np.frombuffer(body, dtype, elements, header_length + offset_bytes).reshape(shape)
        return Request(None, found, self.outputs, self.stage_times, remembered=True)


class _TextForm(NamedTuple):
    """What stands around the numbers of the only tensor, in a body that is all JSON. It has no id."""

    before: bytes
    after: bytes
    wants_binary: bool
    name: str
    numbers: tensors.Numbers
    shape: tuple[int, ...]
    outputs: tuple[tuple[str, bool], ...]
    stage_times: bool

    def read(self, body: bytes, *, wants_binary: bool) -> Request | None:
        """None when the body is of another form, or has other than numbers where they belong."""
        before, after = self.before, self.after
        if wants_binary is not self.wants_binary or not (body.startswith(before) and body.endswith(after)):
            return None
        array = self.numbers.read(body[len(before) : len(body) - len(after)])
        if array is None:
            return None
        return Request(None, {self.name: array.reshape(self.shape)}, self.outputs, self.stage_times, remembered=True)


_NOTHING_SAID: Final = _Parameters()
_decoder: Final = msgspec.json.Decoder(_Body)


class Reader:
    """Of the requests to one release. Any number of threads may read."""

    __slots__ = ("_forms", "_inputs", "_outputs", "_text_forms")

    def __init__(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._forms: dict[tuple[bytes, bool], _Form] = {}
        self._text_forms: tuple[_TextForm, ...] = ()

    def read(self, body: memoryview, header_length: int, *, wants_binary: bool) -> Request:
        """The request. `wants_binary` decides for outputs about which it says nothing itself. Raises InputFault.

        Numeric tensors of binary data are views of `body`: it must not change before they have been used.
        """
        if header_length == NO_HEADER:
            return self._read_text(body, wants_binary=wants_binary)
        if header_length > len(body):
            raise InputFault(f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes")
        header = bytes(body[:header_length])
        form = self._forms.get((header, wants_binary))
        if form is not None and len(body) - header_length == form.tensors_bytes:
            return form.read(body, header_length)
        _, request = self._read(header, body[header_length:], wants_binary=wants_binary)
        if request.id is None and header_length <= _FORM_BYTES_MAX:
            self._remember((header, wants_binary), request, len(body) - header_length)
        return request

    def _read_text(self, body: memoryview, *, wants_binary: bool) -> Request:
        if len(body) > _TEXT_BYTES_MAX:
            return self._read(body, body[:0], wants_binary=wants_binary)[1]
        text = bytes(body)
        for form in self._text_forms:
            request = form.read(text, wants_binary=wants_binary)
            if request is not None:
                return request
        asked, request = self._read(text, body[:0], wants_binary=wants_binary)
        self._remember_text(text, asked, request, wants_binary=wants_binary)
        return request

    def _read(self, header: bytes | memoryview, trailing: memoryview, *, wants_binary: bool) -> tuple[_Body, Request]:
        try:
            asked = _decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputFault(f"the request is not an inference request: {error}") from error
        found = _tensors(asked.inputs, trailing, self._inputs)
        said = asked.parameters or _NOTHING_SAID
        default = wants_binary if said.binary_data_output is None else said.binary_data_output
        return asked, Request(asked.id, found, _outputs(asked.outputs, self._outputs, default), said.stage_times)

    def _remember(self, header: tuple[bytes, bool], request: Request, tensors_bytes: int) -> None:
        """Unless a tensor must be looked at each time, or is in the header itself."""
        arrays = request.tensors
        if sum(array.nbytes for array in arrays.values()) != tensors_bytes:
            return
        if any(self._inputs[name].datatype in tensors.LOOKED_AT for name in arrays):
            return
        places, offset_bytes = [], 0
        for name, array in arrays.items():  # in the order in which the header has them
            places.append(_Place(name, array.dtype, array.size, offset_bytes, array.shape))
            offset_bytes += array.nbytes
        if len(self._forms) >= FORMS_MAX:
            self._forms.clear()
        self._forms[header] = _Form(tuple(places), tensors_bytes, request.outputs, request.stage_times)

    def _remember_text(self, text: bytes, asked: _Body, request: Request, *, wants_binary: bool) -> None:
        """If it has no id, and one tensor whose numbers are told from all that stands around them."""
        data = bytes(asked.inputs[0].data)
        ((name, array), *others) = request.tensors.items()
        if request.id is not None or others or array.dtype == object:
            return
        before, _, after = text.partition(data)
        if data in after or len(before) + len(after) > _FORM_BYTES_MAX:
            return
        numbers = tensors.Numbers(self._inputs[name].datatype, array.size)
        if numbers.read(data) is None:  # rows in rows
            return
        form = _TextForm(before, after, wants_binary, name, numbers, array.shape, request.outputs, request.stage_times)
        kept = self._text_forms if len(self._text_forms) < TEXT_FORMS_MAX else ()
        self._text_forms = (form, *kept)


def _tensors(given: list[_Input], trailing: memoryview, declared: Mapping[str, Tensor]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    position = 0
    for item in given:
        tensor = _check(item, declared)
        if item.name in found:
            raise InputFault(f"tensor {tensor.name} is given twice")
        size = item.parameters.binary_data_size if item.parameters is not None else None
        if size is None:
            if not item.data:
                raise InputFault(f"tensor {tensor.name} has neither data nor parameters.binary_data_size")
            found[tensor.name] = tensors.from_json(tensor.name, tensor.datatype, item.shape, item.data)
            continue
        if item.data:
            raise InputFault(f"tensor {tensor.name} has both data and parameters.binary_data_size")
        if position + size > len(trailing):
            raise InputFault(
                f"tensor {tensor.name}: binary_data_size is {size} bytes, {len(trailing) - position} are left of the"
                " body after the JSON that Inference-Header-Content-Length measures"
            )
        raw = trailing[position : position + size]
        found[tensor.name] = tensors.from_bytes(tensor.name, tensor.datatype, item.shape, raw)
        position += size
    if position != len(trailing):
        raise InputFault(f"{len(trailing) - position} bytes of the body belong to no tensor's binary_data_size")
    if len(found) != len(declared):
        missing = ", ".join(name for name in declared if name not in found)
        raise InputFault(f"tensor {missing} is missing; the model takes {', '.join(declared)}")
    return found


def _check(item: _Input, declared: Mapping[str, Tensor]) -> Tensor:
    tensor = declared.get(item.name)
    if tensor is None:
        raise InputFault(f"there is no input tensor {_told(item.name)}; the model takes {', '.join(declared)}")
    if item.datatype != tensor.datatype:
        raise InputFault(f"tensor {tensor.name}: datatype {_told(item.datatype)}, the model takes {tensor.datatype}")
    if not tensors.fits(item.shape, tensor.shape):
        raise InputFault(f"tensor {tensor.name}: shape {list(item.shape)}, the model takes {list(tensor.shape)}")
    if not math.prod(item.shape):
        # An empty question has an empty answer, and that would count as the model's null.
        raise InputFault(f"tensor {tensor.name}: shape {list(item.shape)} has no element")
    if item.parameters is not None and item.parameters.shared_memory_region is not None:
        raise InputFault(f"tensor {tensor.name}: shared memory is not supported; send the data")
    return tensor


def _outputs(
    asked: list[_Output] | None, declared: Mapping[str, Tensor], default: bool
) -> tuple[tuple[str, bool], ...]:
    if not asked:
        return tuple((name, default) for name in declared)
    found: dict[str, bool] = {}
    for item in asked:
        if item.name not in declared:
            raise InputFault(f"there is no output {_told(item.name)}; the model answers {', '.join(declared)}")
        if item.name in found:
            raise InputFault(f"output {item.name} is asked for twice")
        binary = None
        if item.parameters is not None:
            binary = item.parameters.binary_data
            if item.parameters.classification:
                raise InputFault(f"output {item.name}: the classification extension is not supported")
            if item.parameters.shared_memory_region is not None:
                raise InputFault(f"output {item.name}: shared memory is not supported")
        found[item.name] = default if binary is None else binary
    return tuple(found.items())


def _told(name: str) -> str:
    """A stranger's text, short enough for a message."""
    return repr(name if len(name) <= _NAME_CHARACTERS_TOLD else name[:_NAME_CHARACTERS_TOLD] + "…")
