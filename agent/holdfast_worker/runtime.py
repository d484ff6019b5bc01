"""What a model runtime must do for a worker. One backend per file; all go through tests/worker/test_runtime_contract.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from holdfast_shared.wire.release import Variant
from holdfast_worker.accelerators import NONE as NO_DELEGATES
from holdfast_worker.failures import LoadRefused
from holdfast_worker.tensors import Array, ModelTensor


class Session(Protocol):
    """A loaded model. Any number of threads may run it at once; letting go of it frees what it holds."""

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        """What the file itself says it is asked with; -1 is a dimension of any size, shape None an unknown one."""

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """What the file itself says it answers."""

    def run(self, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        """The wanted outputs, less those that the model left out. BYTES are object arrays of `bytes` both ways.

        Reads the arrays of `feeds` only while it runs, wherever they lie. May be repeated. Raises ModelRaised, and
        InputFault for bytes that the runtime has no form for.
        """


class Runtime(Protocol):
    """Makes sessions."""

    def load(self, model: bytes, *, threads: int, declared: Variant | None = None) -> Session:
        """A session of exactly these bytes: it follows no path in them. Raises LoadRefused when they are no model.

        `declared` says which accelerators it was made for, and is for a runtime whose files say nothing of their tensors.
        """

    def describe(self) -> dict[str, str]:
        """Its part of the environment's fingerprint: name, version, and what it computes on."""


def runtime_named(name: str, delegates: Mapping[str, str] = NO_DELEGATES) -> Runtime:
    """The runtime that a manifest names; `delegates`: libraries by accelerator, for TFLite.

    Raises LoadRefused `not-supported` when this environment has none of it.
    """
    make = _MAKERS.get(name)
    if make is None:
        raise LoadRefused(
            "not-supported", f"runtime {name!r} is not supported yet; supported: {', '.join(sorted(_MAKERS))}"
        )
    try:
        return make(delegates)
    except ImportError as error:
        raise LoadRefused(
            "not-supported", f"the {name} runtime cannot be imported ({error}): install holdfast[{name}]"
        ) from error


# A worker imports only the runtimes that its release needs.
def _onnx(_: Mapping[str, str]) -> Runtime:
    from holdfast_worker.onnx_runtime import OnnxRuntime  # noqa: PLC0415 - see above

    return OnnxRuntime()


def _tflite(delegates: Mapping[str, str]) -> Runtime:
    from holdfast_worker.tflite_runtime import TfliteRuntime  # noqa: PLC0415 - see above

    return TfliteRuntime(delegates)


def _python(_: Mapping[str, str]) -> Runtime:
    from holdfast_worker.python_runtime import PythonRuntime  # noqa: PLC0415 - see above

    return PythonRuntime()


_MAKERS: Final[Mapping[str, Callable[[Mapping[str, str]], Runtime]]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "python": _python,
}
NAMES: Final = frozenset(_MAKERS)
# A function comes from an environment's wheels: the device's own Python has nothing of a publisher's.
NAMES_OF_SYSTEM: Final = NAMES - {"python"}
