"""What a model file says of its tensors, and whether one shape may go where another is declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast_shared.wire.release import Datatype


class FileTensor(NamedTuple):
    """A tensor as a file states it: None is what it leaves open (or what has no datatype), -1 a dimension of any size."""

    name: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None


class FileTensors(NamedTuple):
    """What the model is asked with, and what it answers."""

    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]


def may_feed(given: Sequence[int], taken: Sequence[int]) -> bool:
    """Whether every concrete shape of `given` is one of `taken`: any size may not go where one is fixed."""
    return len(given) == len(taken) and all(there in (-1, here) for here, there in zip(given, taken, strict=True))


def may_be(real: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether some concrete shape of `real` is one of `declared`; each answer is checked again."""
    return len(real) == len(declared) and all(
        -1 in (here, there) or here == there for here, there in zip(real, declared, strict=True)
    )
