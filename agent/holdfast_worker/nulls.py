"""Whether an answer is null: an output that is missing, empty, not finite somewhere, or nothing but the declared sentinel.

A sentinel is told only when every element is it: in an answer to a batch, a row of it is that row's honest "nothing here".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast_worker.tensors import Array, finite


def null_in(outputs: Mapping[str, Array], expected: Iterable[str], sentinels: Mapping[str, Array]) -> str | None:
    """The first expected output that is null and why, or None. A sentinel is an array of one, of the output's datatype."""
    for name in expected:
        array = outputs.get(name)
        if array is None:
            return f"output {name} is missing"
        if array.size == 0:
            return f"output {name} is empty"
        if array.dtype.kind == "f" and not finite(array):
            return f"output {name} is not finite"
        sentinel = sentinels.get(name)
        if sentinel is not None and (array == sentinel).all():
            return f"output {name} is the sentinel {sentinel.item()}"
    return None
