"""The TFLite backend: LiteRT (`ai-edge-litert`) where it is installed, else its predecessor `tflite-runtime`, on the CPU;
or first on the accelerator that the variant asks for, by the delegate that the device's configuration names.

Both have the same interpreter. An interpreter computes for one caller at a time, so a session has a lock; it fits itself to the
shapes of a request, and keeps them while they stay the same. Tensors are called by their names in the graph.

`tflite-runtime` does not look whether a file is whole: cut off, it computes on whatever lies behind it, or the process dies. So
the file is walked here first, whichever library computes. With numpy 2 that library dies at its second model (measured with
2.14.0): it is refused there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from holdfast_shared import tflite_file
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import Datatype, Variant
from holdfast_worker import accelerators
from holdfast_worker.accelerators import Unusable
from holdfast_worker.failures import LoadRefused, ModelRaised
from holdfast_worker.tensors import DTYPES, Array, ModelTensor

# Both apply this delegate by themselves, and compute the rest without.
_PROVIDERS: Final = "XNNPACK,CPU"
_NUMPY_MAJOR_LEGACY_MAX: Final = 1
_RAISED: Final = (RuntimeError, ValueError, TypeError, MemoryError, SystemError)
_BY_DTYPE: Final[dict[np.dtype[Any], Datatype]] = {
    **{dtype: name for name, dtype in DTYPES.items() if name != "BYTES"},
    np.dtype(np.bytes_): "BYTES",
}


class TfliteSession:
    """One loaded graph."""

    __slots__ = ("_answered", "_asked", "_interpreter", "_lock", "_make", "_shapes", "inputs", "outputs")

    def __init__(self, make: Callable[[], Any], lacks: frozenset[Datatype] = frozenset()) -> None:
        """`make` an interpreter of the file; `lacks`: datatypes that the library declares and cannot be given."""
        self._make = make
        self._lock = threading.Lock()
        self._interpreter = interpreter = make()
        self._shapes: tuple[tuple[int, ...], ...] | None = None  # what its tensors are allocated for
        asked, answered = interpreter.get_input_details(), interpreter.get_output_details()
        self._asked: dict[str, int] = {detail["name"]: detail["index"] for detail in asked}
        self._answered: dict[str, int] = {detail["name"]: detail["index"] for detail in answered}
        self.inputs = tuple(map(_described, asked))
        self.outputs = tuple(map(_described, answered))
        for tensor in (*self.inputs, *self.outputs):
            if tensor.datatype in lacks:
                raise LoadRefused(
                    "not-supported", f"{tensor.name} is {tensor.datatype}, which tflite-runtime cannot take"
                )

    def run(self, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        missing = [name for name in self._asked if name not in feeds]
        if missing:
            raise ModelRaised(f"the model is not given {', '.join(missing)}")
        with self._lock:
            try:
                found = self._computed(feeds, wanted)
            except _RAISED as error:
                # It may not be used again: tflite-runtime dies at the allocation after one that failed (measured with 2.14.0).
                self._interpreter = None
                raise ModelRaised(_short(error)) from error
        return {name: _as_octets(array) if array.dtype.kind in "SO" else array for name, array in found.items()}

    def _computed(self, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        if self._interpreter is None:
            self._interpreter, self._shapes = self._make(), None
        interpreter = self._interpreter
        shapes = tuple(feeds[name].shape for name in self._asked)
        if shapes != self._shapes:
            for index, shape in zip(self._asked.values(), shapes, strict=True):
                interpreter.resize_tensor_input(index, list(shape), strict=True)
            interpreter.allocate_tensors()
            self._shapes = shapes
        for name, index in self._asked.items():
            interpreter.set_tensor(index, feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(self._answered[name]) for name in wanted}


class TfliteRuntime:
    """Makes sessions of TFLite files."""

    def __init__(self, delegates: Mapping[str, str] = accelerators.NONE) -> None:
        """`delegates`: libraries by accelerator.

        Raises ImportError when neither library is here, LoadRefused when the one that is cannot work.
        """
        self._library, self._name, self._lacks = _library()
        self._configured, self._used = delegates, ""

    def load(self, model: bytes, *, threads: int, declared: Variant | None = None) -> TfliteSession:
        labels = declared.hardware.accelerators if declared is not None else ()
        loaded = self._delegates(labels)
        self._used = "".join(f"{label}," for label in labels)
        try:
            tflite_file.tensors_of(model)
        except Malformed as error:
            raise LoadRefused("load-failed", f"the file {error.message}") from error
        try:
            return TfliteSession(
                lambda: self._library.Interpreter(
                    model_content=model, num_threads=threads, experimental_delegates=loaded or None
                ),
                self._lacks,
            )
        except _RAISED as error:
            raise LoadRefused("load-failed", f"{self._name} refuses the model: {_short(error)}") from error

    def describe(self) -> dict[str, str]:
        return {"runtime": self._name, "providers": f"{self._used}{_PROVIDERS}"}

    def _delegates(self, labels: Sequence[str]) -> list[Any]:
        try:
            paths = accelerators.delegates(labels, self._configured)
        except Unusable as why:
            raise LoadRefused("not-supported", f"the variant {why}") from why
        found = []
        for label, path in zip(labels, paths, strict=True):
            try:
                # Before its own wrapper, which fails a second time when it forgets a library that it could not load.
                ctypes.CDLL(path)
                found.append(self._library.load_delegate(path))
            except (*_RAISED, OSError) as error:
                raise LoadRefused(
                    "not-supported", f"the delegate for {label}, {path}, cannot be loaded: {_short(error)}"
                ) from error
        return found


def check_numpy(legacy: str, numpy_version: str) -> None:
    """Raises LoadRefused when the predecessor of LiteRT would crash with this numpy."""
    if int(numpy_version.partition(".")[0]) > _NUMPY_MAJOR_LEGACY_MAX:
        raise LoadRefused(
            "not-supported",
            f"{legacy} crashes with numpy {numpy_version}: install holdfast[tflite], or numpy below 2",
        )


def _library() -> tuple[Any, str, frozenset[Datatype]]:
    """The module of the interpreter, what the fingerprint calls it, and the datatypes that it lacks."""
    try:
        module = import_module("ai_edge_litert.interpreter")
    except ImportError:
        name = f"tflite-runtime {version('tflite-runtime')}"  # PackageNotFoundError is an ImportError, too
        check_numpy(name, np.__version__)
        return import_module("tflite_runtime.interpreter"), name, frozenset({"UINT16"})
    return module, f"ai-edge-litert {version('ai-edge-litert')}", frozenset()


def _described(detail: Mapping[str, Any]) -> ModelTensor:
    datatype = _BY_DTYPE.get(np.dtype(detail["dtype"]))
    if datatype is None:
        raise LoadRefused("not-supported", f"{detail['name']} is of type {detail['dtype']}, which has no datatype")
    return ModelTensor(detail["name"], datatype, tuple(int(size) for size in detail["shape_signature"]))


def _as_octets(array: Array) -> Array:
    octets = np.empty(array.size, dtype=object)
    octets[:] = [bytes(element) for element in array.ravel()]
    return octets.reshape(array.shape)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
