"""The Python backend: a function of the release's environment, for what comes before and after a model.

Its code lies in the environment's packages, which were verified and built there; the stage's file only names it. What it answers
is checked against the manifest each time, because no file says what it answers.
"""

from __future__ import annotations

import platform
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from holdfast_shared import callable_file
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import Tensor, Variant
from holdfast_worker.failures import LoadRefused, ModelRaised
from holdfast_worker.tensors import DTYPES, Array, ModelTensor, fits


class PythonSession:
    """One function. It must keep nothing of a call: several threads may be in it."""

    __slots__ = ("_answers", "_call", "_entry", "inputs", "outputs")

    def __init__(self, entry: str, call: Callable[[dict[str, Array]], Any], declared: Variant) -> None:
        self._entry = entry
        self._call = call
        self._answers = {tensor.name: tensor for tensor in declared.outputs}
        self.inputs = tuple(ModelTensor(one.name, one.datatype, one.shape) for one in declared.inputs)
        self.outputs = tuple(ModelTensor(one.name, one.datatype, one.shape) for one in declared.outputs)

    def run(self, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        try:
            answered = self._call(dict(feeds))
        except Exception as error:  # a publisher's function may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ModelRaised(f"{self._entry}: {type(error).__name__}: {error} (line {where.lineno})"[:400]) from error
        if not isinstance(answered, dict):
            raise ModelRaised(f"{self._entry} answered {type(answered).__name__}, not a dict of arrays")
        return {name: self._checked(name, answered[name]) for name in wanted if name in answered}

    def _checked(self, name: str, value: object) -> Array:
        tensor: Tensor = self._answers[name]
        if not isinstance(value, np.ndarray):
            raise ModelRaised(f"{self._entry}: {name} is {type(value).__name__}, not an array")
        if value.dtype != DTYPES[tensor.datatype]:
            raise ModelRaised(f"{self._entry}: {name} is of {value.dtype}, declared {tensor.datatype}")
        if value.size and not fits(value.shape, tensor.shape):
            raise ModelRaised(f"{self._entry}: {name} has shape {list(value.shape)}, declared {list(tensor.shape)}")
        return value


class PythonRuntime:
    """Finds functions in this interpreter's packages, or in the given folders alone."""

    def __init__(self, packages: Sequence[Path] | None = None) -> None:
        self._packages = tuple(packages or (Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")))

    def load(self, model: bytes, *, threads: int, declared: Variant | None = None) -> PythonSession:  # noqa: ARG002 - its own
        if declared is None:
            raise LoadRefused("load-failed", "a function says nothing of its tensors, and no manifest does")
        try:
            wanted = callable_file.of(model)
        except Malformed as error:
            raise LoadRefused("load-failed", f"the file {error.message}") from error
        try:
            module = import_module(wanted.module)
        except Exception as error:  # a publisher's module may raise anything when it is imported
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise LoadRefused("load-failed", f"{wanted.entry} cannot be imported: {said}") from error
        lies = Path(getattr(module, "__file__", None) or "/")
        if not any(lies.resolve().is_relative_to(folder.resolve()) for folder in self._packages):
            raise LoadRefused("load-failed", f"{wanted.module} is no package of the environment")
        found = getattr(module, wanted.function, None)
        if not callable(found):
            raise LoadRefused("load-failed", f"{wanted.module} has no function {wanted.function}")
        return PythonSession(wanted.entry, found, declared)

    def describe(self) -> dict[str, str]:
        return {"runtime": f"python {platform.python_version()}", "providers": "CPU"}
