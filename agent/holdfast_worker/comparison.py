"""What a shadow says of one request: how its answer compares with the one that the serving release gave.

Compared is what the serving answer has: every output that an application got. Rows are those of the first axis where all of
them have as many, else the answer is one row. A row agrees when each output does: the class of the largest score is the same
where an output is scores (FP, at least two a row), elsewhere every value lies within the release's self-test tolerances. What
the two releases do not share (an output, its shape, a kind of number) cannot be compared, which is counted and no error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np

from holdfast_shared.wire.release import Datatype
from holdfast_shared.wire.report import SCORE_BINS, difference_bin
from holdfast_worker import tensors
from holdfast_worker.channel import Channel, LostPlace
from holdfast_worker.failures import InputFault, ModelRaised
from holdfast_worker.inference_request import Reader
from holdfast_worker.measures import ROWS_MAX
from holdfast_worker.protocol import (
    COMPARE_HEAD,
    LENGTH,
    NO_HEADER,
    Compare,
    Compared,
    Kind,
    Outcome,
    control,
    read_compare,
)
from holdfast_worker.release_runner import Runner
from holdfast_worker.tensors import Array

_OUTPUTS_MAX: Final = 64
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: _Count | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=8)]
    data: msgspec.Raw = msgspec.Raw()
    parameters: _Parameters = _Parameters()


class _Body(msgspec.Struct, frozen=True):
    outputs: Annotated[list[_Output], msgspec.Meta(min_length=1, max_length=_OUTPUTS_MAX)]


class _Pair(NamedTuple):
    """One output of both."""

    serving: Array
    shadow: Array


class _Incomparable(Exception):
    pass


def compare_all(channel: Channel, runner: Runner) -> None:
    """Answer in order, as `main.serve` does, until STOP or until the gateway is gone."""
    comparison = Comparison(runner)
    while (frame := channel.receive()) is not None:
        kind = frame[LENGTH.size]
        if kind == Kind.STOP:
            return
        if kind != Kind.COMPARE or len(frame) < COMPARE_HEAD.size:
            raise LostPlace(f"expected COMPARE or STOP, found kind {kind} in {len(frame)} bytes")
        try:
            asked = read_compare(frame)
        except ValueError as error:
            raise LostPlace(str(error)) from error
        channel.send(control(Kind.COMPARED, comparison.of(asked)))


class Comparison:
    """Of one release that shadows; keeps nothing of a request."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        inputs = {tensor.name: tensor for tensor in runner.inputs}
        self._reader = Reader(inputs, {tensor.name: tensor for tensor in runner.outputs})
        self._tolerance = runner.release.self_test
        self._scored = runner.release.scored

    def of(self, asked: Compare) -> Compared:
        """Run the request, and hold the answer against the serving one. Raises nothing that a request can cause."""
        started = time.perf_counter_ns()
        compute_us = 0
        try:
            request = self._reader.read(asked.request, asked.request_header_length, wants_binary=False)
            started = time.perf_counter_ns()
            try:
                outputs, outcome = self._runner.run(request.tensors)
            finally:
                compute_us = (time.perf_counter_ns() - started) // 1000
            if outcome is Outcome.OK:
                with np.errstate(over="ignore"):  # what is beyond all numbers belongs to the last bin
                    return self._compared(asked, outputs, compute_us)
        except InputFault:
            outcome = Outcome.INPUT_FAULT
        except ModelRaised:
            outcome = Outcome.ERROR
        return Compared(id=asked.id, outcome=outcome, compute_us=compute_us)

    def _compared(self, asked: Compare, outputs: Mapping[str, Array], compute_us: int) -> Compared:
        try:
            pairs = _pairs(read_answer(asked.answer, asked.answer_header_length), outputs)
        except (_Incomparable, InputFault):
            return Compared(id=asked.id, outcome=Outcome.OK, compute_us=compute_us)
        rows = _rows(pairs.values())
        agree = np.ones(rows, dtype=bool)
        for name, pair in pairs.items():
            agree &= self._agrees(name, pair, rows)
        scores = self._scores(pairs)
        return Compared(
            id=asked.id,
            outcome=Outcome.OK,
            compute_us=compute_us,
            rows=rows,
            agreed=int(agree.sum()),
            difference=difference_bin(max(map(_difference, pairs.values()))),
            confidence=_confidence(scores.shadow) if scores is not None else (),
            margin=_margin(scores.shadow) if scores is not None else (),
            serving_confidence=_confidence(scores.serving) if scores is not None else (),
            serving_margin=_margin(scores.serving) if scores is not None else (),
        )

    def _agrees(self, name: str, pair: _Pair, rows: int) -> Array:
        """Row by row."""
        if self._is_scores(name, pair):
            same: Array = np.asarray(pair.serving.argmax(axis=1) == pair.shadow.argmax(axis=1))
        else:
            same = self._near(pair)
        found: Array = np.asarray(same.reshape(rows, -1).all(axis=1))
        return found

    def _near(self, pair: _Pair) -> Array:
        """Element by element; 64-bit integers are not always floats, so equality is asked first."""
        same: Array = np.asarray(pair.serving == pair.shadow)
        if pair.serving.dtype.kind in "Ob":
            return same
        serving, shadow = pair.serving.astype(np.float64), pair.shadow.astype(np.float64)
        tolerance = self._tolerance
        near = np.isclose(shadow, serving, rtol=tolerance.relative_tolerance, atol=tolerance.absolute_tolerance)
        return np.asarray(same | near)

    def _is_scores(self, name: str, pair: _Pair) -> bool:
        """By the release's word where it has one, else by the looks of it."""
        looks = pair.serving.dtype.kind == "f" and pair.serving.ndim == 2 and pair.serving.shape[1] > 1
        return looks and self._scored in (None, name)

    def _scores(self, pairs: Mapping[str, _Pair]) -> _Pair | None:
        return next((pair for name, pair in pairs.items() if self._is_scores(name, pair)), None)


def read_answer(body: memoryview, header_length: int) -> dict[str, Array]:
    """The outputs of an answer as a worker wrote it. Raises InputFault for what none writes."""
    header = body if header_length == NO_HEADER else body[:header_length]
    try:
        described = msgspec.json.decode(header, type=_Body).outputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputFault(f"the serving answer cannot be read: {error}") from error
    found: dict[str, Array] = {}
    position = len(header)
    for one in described:
        size = one.parameters.binary_data_size
        if size is None:
            found[one.name] = tensors.from_json(one.name, one.datatype, one.shape, one.data)
        else:
            found[one.name] = tensors.from_bytes(one.name, one.datatype, one.shape, body[position : position + size])
            position += size
    return found


def _pairs(serving: Mapping[str, Array], shadow: Mapping[str, Array]) -> dict[str, _Pair]:
    """Raises _Incomparable."""
    pairs: dict[str, _Pair] = {}
    for name, array in serving.items():
        other = shadow.get(name)
        if other is None or other.shape != array.shape or _kind(other) != _kind(array):
            raise _Incomparable
        pairs[name] = _Pair(array, other)
    return pairs


def _kind(array: Array) -> str:
    """Numbers of other widths are the same numbers: what a release computes in is its own affair."""
    return {"u": "i"}.get(array.dtype.kind, array.dtype.kind)


def _rows(pairs: Iterable[_Pair]) -> int:
    lengths = {len(pair.serving) if pair.serving.ndim else 1 for pair in pairs}
    return lengths.pop() if len(lengths) == 1 else 1


def _difference(pair: _Pair) -> float:
    """The largest of any two numbers; of texts and truths, 1 where any differ."""
    if pair.serving.dtype.kind in "Ob":
        return float(not (pair.serving == pair.shadow).all())
    return float(np.abs(pair.serving.astype(np.float64) - pair.shadow.astype(np.float64)).max())


def _confidence(scores: Array) -> tuple[int, ...]:
    best = np.sort(scores[:ROWS_MAX].astype(np.float64), axis=1)
    return _bins(best[:, -1])


def _margin(scores: Array) -> tuple[int, ...]:
    best = np.sort(scores[:ROWS_MAX].astype(np.float64), axis=1)
    return _bins(best[:, -1] - best[:, -2])


def _bins(values: Array) -> tuple[int, ...]:
    """As `measures` has them."""
    return tuple(np.clip(values * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64).tolist())
