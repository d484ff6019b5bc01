"""The ONNX backend: onnxruntime on the CPU, or first on the accelerator that the variant asks for; one thread, never spinning.

A session is made of bytes, never of a path: by path onnxruntime follows links out of the folder. Even from bytes a model may
name weights in another file, which nobody verified, and those are then sought in the *working directory* (measured with 1.32:
a plain file or a hard link is read; `..`, absolute paths and symbolic links are not). So they are sought where nothing can be.
Spinning threads would take the second core of a small device from the gateway.

From 1.29 on the packages for Linux report to their maker from the moment of import (microsoft/onnxruntime#27379). A device
speaks to its own fleet alone, so that is turned off before: afterwards is too late.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, at import

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as raised_by

from holdfast_shared.wire.release import Datatype, Variant
from holdfast_worker import accelerators
from holdfast_worker.accelerators import Unusable
from holdfast_worker.failures import InputFault, LoadRefused, ModelRaised
from holdfast_worker.tensors import Array, ModelTensor

# What another provider does not compute, this one does.
_CPU: Final = "CPUExecutionProvider"
_LOG_ERRORS_ONLY: Final = 3
_NO_FOLDER: Final = "/dev/null"
# Everything that onnxruntime is known to raise, on load or in a run; each is a direct subclass of Exception, without a base.
_RAISED: Final[tuple[type[Exception], ...]] = (
    *(
        kind
        for kind in vars(raised_by).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception
    ),
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
_DATATYPES: Final[dict[str, Datatype]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxSession:
    """One loaded graph."""

    __slots__ = ("_session", "_texts_in", "_texts_out", "inputs", "outputs")

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_described(argument) for argument in session.get_inputs())
        self.outputs = tuple(_described(argument) for argument in session.get_outputs())
        self._texts_in = tuple(tensor.name for tensor in self.inputs if tensor.datatype == "BYTES")
        self._texts_out = any(tensor.datatype == "BYTES" for tensor in self.outputs)

    def run(self, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        if self._texts_in:
            feeds = {**feeds, **{name: _as_text(name, feeds[name]) for name in self._texts_in if name in feeds}}
        try:
            answered = self._session.run(wanted, feeds)
        except _RAISED as error:
            raise ModelRaised(_short(error)) from error
        found = {name: array for name, array in zip(wanted, answered, strict=True) if array is not None}
        if self._texts_out:
            found = {name: _as_bytes(array) if array.dtype.kind in "OU" else array for name, array in found.items()}
        return found


class OnnxRuntime:
    """Makes sessions of ONNX files."""

    def __init__(self) -> None:
        self._providers: tuple[str, ...] = (_CPU,)

    def load(self, model: bytes, *, threads: int, declared: Variant | None = None) -> OnnxSession:
        labels = declared.hardware.accelerators if declared is not None else ()
        try:
            wanted = accelerators.providers(labels, available_providers())
        except Unusable as why:
            raise LoadRefused("not-supported", f"the variant {why}") from why
        self._providers = (*wanted, _CPU)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
        options.log_severity_level = _LOG_ERRORS_ONLY
        try:
            session = onnxruntime.InferenceSession(model, options, providers=list(self._providers))
            loaded = OnnxSession(session)
        except _RAISED as error:
            raise LoadRefused("load-failed", f"onnxruntime refuses the model: {_short(error)}") from error
        # One that does not begin is left out, and onnxruntime says so in its log alone.
        if lost := [one for one in wanted if one not in session.get_providers()]:
            raise LoadRefused("not-supported", f"{', '.join(lost)} is installed and does not begin on this device")
        return loaded

    def describe(self) -> dict[str, str]:
        return {"runtime": f"onnxruntime {onnxruntime.__version__}", "providers": ",".join(self._providers)}


def available_providers() -> tuple[str, ...]:
    return tuple(onnxruntime.get_available_providers())


def _described(argument: Any) -> ModelTensor:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise LoadRefused("not-supported", f"{argument.name} is of type {argument.type}, which has no datatype")
    # onnxruntime gives an empty shape both for a scalar and for a shape that the file does not state.
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return ModelTensor(argument.name, datatype, shape or None)


def _as_text(name: str, array: Array) -> Array:
    """onnxruntime's text is UTF-8: given bytes, it would compute on their Python notation."""
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise InputFault(f"tensor {name}: an element is not UTF-8, which an ONNX model's text must be") from error
    return text.reshape(array.shape)


def _as_bytes(array: Array) -> Array:
    octets = np.empty(array.size, dtype=object)
    octets[:] = [str(element).encode() for element in array.ravel()]
    return octets.reshape(array.shape)


def _short(error: Exception) -> str:
    """One line; onnxruntime's go on with its source positions."""
    return " ".join(str(error).split())[:400] or type(error).__name__


if __name__ == "__main__":
    sys.stdout.write(" ".join(available_providers()))
