"""What is measured of an answer where the release says how: classes and their scores, and the bins of its reference.

Rows are those of a tensor's first axis where that is of any size, else the tensor is one row. Everything is told in whole
numbers, so that the gateway only adds. Most requests are one row of a few classes, which plain floats do faster.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from holdfast_shared import reference
from holdfast_shared.errors import Malformed
from holdfast_shared.reference import Feature
from holdfast_shared.wire.release import Release, Tensor
from holdfast_shared.wire.report import LABELS_MAX, SCORE_BINS
from holdfast_worker.failures import LoadRefused
from holdfast_worker.protocol import Measured, Measuring, MeasuringFeature
from holdfast_worker.tensors import Array

# A larger batch is told by its first rows: it costs what a small one does.
ROWS_MAX = LABELS_MAX
# So many scores are compared faster as plain floats than by three calls of numpy.
FEW_SCORES = 64


class Measures:
    """Of one release; keeps nothing of a request."""

    __slots__ = ("_batched", "_features", "_scores")

    def __init__(
        self, release: Release, raw: bytes | None, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Raises LoadRefused where the release asks for what its tensors do not have."""
        self._scores = release.scored
        if self._scores is not None:
            _check_numeric(outputs.get(self._scores), "scores", self._scores, outputs)
        features = _read(raw).features if raw is not None else ()
        self._features = tuple(features)
        self._batched: dict[str, bool] = {}
        for feature in features:
            known, name = (inputs, feature.of_request) if feature.of_request else (outputs, feature.tensor)
            tensor = _check_numeric(known.get(name or ""), f"reference feature {feature.name}", feature.tensor, known)
            self._batched[feature.tensor] = bool(tensor.shape) and tensor.shape[0] == -1

    @property
    def none(self) -> bool:
        """There is nothing to measure."""
        return self._scores is None and not self._features

    @property
    def said(self) -> Measuring:
        """What a gateway must know to count it."""
        features = (MeasuringFeature(name=one.name, expected=one.counts) for one in self._features)
        return Measuring(scores=self._scores is not None, features=tuple(features))

    def of(self, request: str | None, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Measured:
        """Of one answer that is good. A tensor that is not there, or not as a feature needs it, is not measured."""
        classes: list[int] = []
        confidence: list[int] = []
        margin: list[int] = []
        if self._scores is not None:
            array = outputs[self._scores]
            rows = array.reshape(-1, array.shape[-1])[:ROWS_MAX] if array.ndim else array.reshape(1, 1)
            if rows.size <= FEW_SCORES:
                scores = rows.tolist()
                classes = [row.index(max(row)) for row in scores]
                best = [sorted(row)[-2:] for row in scores]
            else:
                classes = rows.argmax(axis=1).tolist()
                best = np.partition(rows, -2, axis=1)[:, -2:].tolist() if rows.shape[1] > 1 else rows.tolist()
            confidence = [_score_bin(row[-1]) for row in best]
            margin = [_score_bin(row[-1] - row[0]) for row in best] if rows.shape[1] > 1 else confidence
        drift = [self._bins(feature, inputs, outputs) for feature in self._features]
        return Measured(
            request=request or "",
            classes=tuple(classes),
            confidence=tuple(confidence),
            margin=tuple(margin),
            drift=tuple(drift),
        )

    def _bins(self, feature: Feature, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> tuple[int, ...]:
        name = feature.of_request
        array = outputs.get(feature.tensor) if name is None else inputs.get(name)
        if array is None or not array.size:
            return ()
        rows = array.reshape(len(array), -1)[:ROWS_MAX] if self._batched[feature.tensor] else array.reshape(1, -1)
        if feature.reduce == "element":
            if feature.element >= rows.shape[1]:
                return ()
            values = rows[:, feature.element].tolist()
        elif feature.reduce == "mean":
            values = rows.mean(axis=1, dtype=np.float64).tolist()
        else:
            values = (rows.max(axis=1) if feature.reduce == "max" else rows.min(axis=1)).tolist()
        return tuple(bisect_right(feature.edges, value) for value in values)


def _score_bin(score: float) -> int:
    """Of a good answer, which is finite; a lead in it, or a score times the bins, may be beyond all numbers."""
    return int(min(max(score * SCORE_BINS, 0), SCORE_BINS - 1))


def _read(raw: bytes) -> reference.Reference:
    try:
        return reference.read(raw)
    except Malformed as error:
        raise LoadRefused("load-failed", f"reference: {error}") from error


def _check_numeric(tensor: Tensor | None, what: str, name: str, known: Mapping[str, Tensor]) -> Tensor:
    if tensor is None:
        raise LoadRefused("load-failed", f"{what}: there is no tensor {name}; there are {', '.join(known)}")
    if tensor.datatype in ("BYTES", "BOOL"):
        raise LoadRefused("load-failed", f"{what}: {name} is {tensor.datatype}, and has no numbers to measure")
    return tensor
