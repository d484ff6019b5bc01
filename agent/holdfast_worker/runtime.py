"""What a model runtime must do for a worker. One backend per file; all go through tests/worker/test_runtime_contract.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

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

    def load(self, model: bytes, *, threads: int) -> Session:
        """A session of exactly these bytes: it follows no path in them. Raises LoadRefused when they are no model."""

    def describe(self) -> dict[str, str]:
        """Its part of the environment's fingerprint: name, version, and what it computes on."""


def runtime_named(name: str) -> Runtime:
    """The runtime that a manifest names. Raises LoadRefused `not-supported` when this environment has none of it."""
    if name != "onnx":
        raise LoadRefused("not-supported", f"runtime {name!r} is not supported yet; supported: onnx")
    try:
        from holdfast_worker.onnx_runtime import OnnxRuntime  # noqa: PLC0415 - a worker imports only the runtime it needs
    except ImportError as error:
        raise LoadRefused(
            "not-supported", f"the onnx runtime cannot be imported ({error}): install holdfast[onnx]"
        ) from error
    return OnnxRuntime()
