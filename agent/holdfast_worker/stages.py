"""A release's stages, loaded and run one after the other: `request.<tensor>` and `<stage>.<output>` in, the outputs out.

What the manifest declares is checked against what the files themselves say, once, at load. How it is wired is
`holdfast_shared/wiring.py`'s, which publish asked before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from holdfast_shared.tensor_forms import may_be, may_feed
from holdfast_shared.wire.release import Release, Tensor
from holdfast_shared.wiring import REQUEST, Plan, Wired, plan
from holdfast_worker.failures import InputFault, LoadRefused, ModelRaised
from holdfast_worker.release_files import StageFiles
from holdfast_worker.runtime import Session
from holdfast_worker.tensors import Array, ModelTensor, fits


class _Step(NamedTuple):
    name: str
    session: Session
    feeds: tuple[tuple[str, str], ...]  # the model's input, and the value it is fed with
    of_request: bool  # whether any of them is the request's own
    wanted: tuple[str, ...]
    values: tuple[str, ...]  # the wanted outputs' names as values: `<stage>.<output>`


class Stages:
    """Holds no state of a request: any number of threads may run it."""

    __slots__ = ("_alone", "_answers", "_steps", "inputs", "outputs")

    def __init__(self, release: Release, stages: tuple[StageFiles, ...], sessions: Iterable[Session]) -> None:
        """Raises LoadRefused where wiring, manifest and model file contradict each other."""
        steps = [_step(files, session) for files, session in zip(stages, sessions, strict=True)]
        found = plan(
            [Wired(one.stage.name, one.stage.inputs, one.variant.inputs, one.variant.outputs) for one in stages],
            release.outputs,
        )
        if not isinstance(found, Plan):
            raise LoadRefused("load-failed", "; ".join(map(str, found))[:400])
        self._steps = tuple(steps[place] for place in found.order)
        self._answers = tuple(release.outputs.items())
        self._alone = _alone(steps[0], self._answers) if len(steps) == 1 else None
        self.inputs: tuple[Tensor, ...] = found.inputs
        self.outputs: tuple[Tensor, ...] = found.outputs

    def run(self, request: Mapping[str, Array], spent_us: dict[str, int] | None = None) -> dict[str, Array]:
        """The release's outputs, less those that a model left out. Raises ModelRaised and InputFault.

        `spent_us` is given how long each stage computed, those before a failure too.
        """
        alone = self._alone
        outputs = self._run_all(request, spent_us) if alone is None or spent_us is not None else alone.run(request)
        for tensor in self.outputs:
            array = outputs.get(tensor.name)
            if array is not None and array.size and not fits(array.shape, tensor.shape):
                raise ModelRaised(f"output {tensor.name} has shape {list(array.shape)}, declared {list(tensor.shape)}")
        return outputs

    def _run_all(self, request: Mapping[str, Array], spent_us: dict[str, int] | None) -> dict[str, Array]:
        values = {f"{REQUEST}.{name}": array for name, array in request.items()}
        for step in self._steps:
            started = time.perf_counter_ns()
            values.update(_answered(step, values))
            if spent_us is not None:
                spent_us[step.name] = (time.perf_counter_ns() - started) // 1000
        return {name: values[source] for name, source in self._answers if source in values}


class _Alone(NamedTuple):
    """The only stage of most releases: nothing but the request feeds it, so nothing has to be looked up by a value's name."""

    step: _Step
    feeds: tuple[tuple[str, str], ...]  # the model's input, and the request's tensor
    answers: tuple[tuple[str, str], ...]  # the release's output, and the model's

    def run(self, request: Mapping[str, Array]) -> dict[str, Array]:
        try:
            feeds = {name: request[of] for name, of in self.feeds}
        except KeyError as error:
            raise ModelRaised(
                f"stage {self.step.name} lacks {REQUEST}.{error.args[0]}, which was not answered"
            ) from error
        try:
            found = self.step.session.run(feeds, self.step.wanted)
        except ModelRaised as error:
            raise ModelRaised(f"stage {self.step.name}: {error}") from error
        return {name: found[of] for name, of in self.answers if of in found}


def _alone(step: _Step, answers: tuple[tuple[str, str], ...]) -> _Alone:
    feeds = tuple((name, source.partition(".")[2]) for name, source in step.feeds)
    return _Alone(step, feeds, tuple((name, source.partition(".")[2]) for name, source in answers))


def _answered(step: _Step, values: Mapping[str, Array]) -> dict[str, Array]:
    try:
        feeds = {name: values[source] for name, source in step.feeds}
    except KeyError as error:
        raise ModelRaised(f"stage {step.name} lacks {error.args[0]}, which was not answered") from error
    try:
        found = step.session.run(feeds, step.wanted)
    except ModelRaised as error:
        raise ModelRaised(f"stage {step.name}: {error}") from error
    except InputFault as error:
        if step.of_request:
            raise
        raise ModelRaised(f"stage {step.name}: {error}") from error  # another stage's answer: no request's fault
    return {value: found[name] for name, value in zip(step.wanted, step.values, strict=True) if name in found}


def _step(files: StageFiles, session: Session) -> _Step:
    stage, variant = files.stage, files.variant
    _check_declared(f"stage {stage.name} input", variant.inputs, session.inputs, exact=True)
    _check_declared(f"stage {stage.name} output", variant.outputs, session.outputs, exact=False)
    wanted = tuple(tensor.name for tensor in variant.outputs)
    return _Step(
        name=stage.name,
        session=session,
        feeds=tuple(stage.inputs.items()),
        of_request=any(source.partition(".")[0] == REQUEST for source in stage.inputs.values()),
        wanted=wanted,
        values=tuple(f"{stage.name}.{name}" for name in wanted),
    )


def _check_declared(what: str, declared: tuple[Tensor, ...], there: tuple[ModelTensor, ...], *, exact: bool) -> None:
    """`exact`: the model must be asked with all of its tensors; of its answers some may stay unused."""
    found = {tensor.name: tensor for tensor in there}
    for tensor in declared:
        real = found.pop(tensor.name, None)
        if real is None:
            names = ", ".join(tensor.name for tensor in there)
            raise LoadRefused("load-failed", f"{what} {tensor.name}: the model has {names}")
        if real.datatype != tensor.datatype:
            raise LoadRefused(
                "load-failed", f"{what} {tensor.name}: the model has {real.datatype}, declared {tensor.datatype}"
            )
        if real.shape is not None and not (
            may_feed(tensor.shape, real.shape) if exact else may_be(real.shape, tensor.shape)
        ):
            raise LoadRefused(
                "load-failed",
                f"{what} {tensor.name}: the model has shape {list(real.shape)}, declared {list(tensor.shape)}",
            )
    if exact and found:
        raise LoadRefused("load-failed", f"{what} {', '.join(found)}: the model needs it, the manifest lacks it")
