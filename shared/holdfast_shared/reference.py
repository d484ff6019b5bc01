"""The blob `reference` of a release: which numbers of a request or an answer are watched, in which bins, and how the
publisher's own sample fell into them.

    {"features": [{"name": "ink", "tensor": "request.image", "reduce": "mean", "edges": [1.2, 2.9], "counts": [31, 35, 34]}]}

A feature is one number of each row (a tensor's first axis, where that is of any size): an element, or the mean, smallest or
largest of them. Bin k holds what is at least edge k-1 and below edge k; so `counts` has one more than `edges`. Quantiles of the
sample are good edges. Bins never move, and counting needs whole numbers only: merging is addition.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.release import ShortText
from holdfast_shared.wire.report import DRIFT_BINS_MAX, DRIFT_FEATURES_MAX

SIZE_BYTES_MAX: Final = 64 * 1024
REQUEST: Final = "request"
# Fewer rows of the publisher's make an alarm's bound so wide that nothing is ever seen.
ROWS_MIN: Final = 100


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tensor` is `request.<input>` or an output of the release; `element` counts in its row, flat."""

    name: ShortText
    tensor: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    edges: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=DRIFT_BINS_MAX - 1)]
    counts: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=2**53)], ...],
        msgspec.Meta(min_length=2, max_length=DRIFT_BINS_MAX),
    ]
    reduce: Literal["element", "mean", "min", "max"] = "element"
    element: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges make {len(self.edges) + 1} bins; counts has {len(self.counts)}")
        if any(not math.isfinite(edge) for edge in self.edges) or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges are finite and ascend")
        if sum(self.counts) < ROWS_MIN:
            raise ValueError(f"counts are of {sum(self.counts)} rows; a reference has at least {ROWS_MIN}")

    @property
    def of_request(self) -> str | None:
        """The request's tensor that it is of, or None: then it is of an output."""
        owner, _, name = self.tensor.partition(".")
        return name if owner == REQUEST and name else None


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    features: Annotated[tuple[Feature, ...], msgspec.Meta(min_length=1, max_length=DRIFT_FEATURES_MAX)]


def read(raw: bytes) -> Reference:
    """Raises Malformed that says where."""
    found = strict_json.decode(raw, Reference, what="the reference", size_bytes_max=SIZE_BYTES_MAX)
    names = [feature.name for feature in found.features]
    if len(set(names)) != len(names):
        raise Malformed("two features of the reference have one name", next_step="name each once")
    return found


def bins_of(values: Sequence[float], count: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of at most `count` bins that hold equal shares of the sample, where its values allow.

    A value that fills a bin alone, as a pixel that is nearly always black does, gets a bin, and the others share the rest.
    Raises ValueError for a sample from which nothing can be told.
    """
    if len(values) < ROWS_MIN:
        raise ValueError(f"{len(values)} values; at least {ROWS_MIN} are needed")
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is not finite")
    ordered = sorted(values)
    wanted = (ordered[len(ordered) * number // count] for number in range(1, count))
    edges = tuple(sorted({edge for edge in wanted if edge > ordered[0]}))
    if not edges:
        following = [value for value in ordered if value > ordered[0]]
        if not following:
            raise ValueError("all values are the same: no drift can be told from this feature")
        edges = (following[0],)
    places = [0, *(bisect.bisect_left(ordered, edge) for edge in edges), len(ordered)]
    return edges, tuple(after - before for before, after in pairwise(places))


def faults_in(raw: bytes, inputs: frozenset[str] | set[str], outputs: frozenset[str] | set[str]) -> list[str]:
    """What is wrong with the file for a release that has these tensors."""
    try:
        found = read(raw)
    except Malformed as error:
        return [error.message + (f" (at {error.field})" if error.field else "")]
    wrong = []
    for index, feature in enumerate(found.features):
        known, name = (inputs, feature.of_request) if feature.of_request is not None else (outputs, feature.tensor)
        if name not in known:
            there = ", ".join(sorted([*(f"{REQUEST}.{one}" for one in inputs), *outputs]))
            wrong.append(f"features[{index}] ({feature.name}): no tensor {feature.tensor!r}; there are {there}")
    return wrong
