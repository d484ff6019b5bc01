"""A release's stages, wired by name: `request.<tensor>` and `<stage>.<output>` in, the release's outputs out.

What the manifest declares is checked against what the files themselves say, once, at load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from holdfast_shared.wire.release import Release, Tensor
from holdfast_worker.failures import LoadRefused, ModelRaised
from holdfast_worker.release_files import StageFiles
from holdfast_worker.runtime import Session
from holdfast_worker.tensors import Array, ModelTensor, fits

REQUEST: Final = "request"


class _Step(NamedTuple):
    name: str
    session: Session
    feeds: tuple[tuple[str, str], ...]  # the model's input, and the value it is fed with
    wanted: tuple[str, ...]
    values: tuple[str, ...]  # the wanted outputs' names as values: `<stage>.<output>`


class Stages:
    """Loaded stages, run one after the other. Holds no state of a request: any number of threads may run it."""

    __slots__ = ("_answers", "_steps", "inputs", "outputs")

    def __init__(self, release: Release, stages: tuple[StageFiles, ...], sessions: Iterable[Session]) -> None:
        """Raises LoadRefused where wiring, manifest and model file contradict each other."""
        asked: dict[str, Tensor] = {}
        known: dict[str, Tensor] = {}
        steps = []
        for files, session in zip(stages, sessions, strict=True):
            steps.append(_step(files, session, asked, known))
            known.update({f"{files.stage.name}.{tensor.name}": tensor for tensor in files.variant.outputs})
        self._steps = tuple(steps)
        self._answers = tuple(release.outputs.items())
        self.inputs: tuple[Tensor, ...] = tuple(asked.values())
        self.outputs: tuple[Tensor, ...] = tuple(
            _renamed(_found(known, source, f"outputs.{name}"), name) for name, source in self._answers
        )

    def run(self, request: Mapping[str, Array]) -> dict[str, Array]:
        """The release's outputs, less those that a model left out. Raises ModelRaised and InputFault."""
        values = {f"{REQUEST}.{name}": array for name, array in request.items()}
        for step in self._steps:
            try:
                feeds = {name: values[source] for name, source in step.feeds}
            except KeyError as error:
                raise ModelRaised(f"stage {step.name} lacks {error.args[0]}, which was not answered") from error
            answered = step.session.run(feeds, step.wanted)
            for name, value in zip(step.wanted, step.values, strict=True):
                if name in answered:
                    values[value] = answered[name]
        outputs = {name: values[source] for name, source in self._answers if source in values}
        for tensor in self.outputs:
            array = outputs.get(tensor.name)
            if array is not None and array.size and not fits(array.shape, tensor.shape):
                raise ModelRaised(f"output {tensor.name} has shape {list(array.shape)}, declared {list(tensor.shape)}")
        return outputs


def _step(files: StageFiles, session: Session, asked: dict[str, Tensor], known: Mapping[str, Tensor]) -> _Step:
    stage, variant = files.stage, files.variant
    _check_declared(f"stage {stage.name} input", variant.inputs, session.inputs, exact=True)
    _check_declared(f"stage {stage.name} output", variant.outputs, session.outputs, exact=False)
    feeds = []
    for tensor in variant.inputs:
        where = f"stages.{stage.name}.inputs.{tensor.name}"
        source = stage.inputs.get(tensor.name)
        if source is None:
            raise LoadRefused("load-failed", f"{where} is not wired: expected {REQUEST}.<name> or <stage>.<output>")
        owner, _, name = source.partition(".")
        given = asked.setdefault(name, _renamed(tensor, name)) if owner == REQUEST else _found(known, source, where)
        if given.datatype != tensor.datatype or not _may_feed(given.shape, tensor.shape):
            raise LoadRefused(
                "load-failed",
                f"{where}: {source} is {given.datatype} {list(given.shape)},"
                f" the model takes {tensor.datatype} {list(tensor.shape)}",
            )
        feeds.append((tensor.name, source))
    wanted = tuple(tensor.name for tensor in variant.outputs)
    return _Step(stage.name, session, tuple(feeds), wanted, tuple(f"{stage.name}.{name}" for name in wanted))


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
            _may_feed(tensor.shape, real.shape) if exact else _may_be(real.shape, tensor.shape)
        ):
            raise LoadRefused(
                "load-failed",
                f"{what} {tensor.name}: the model has shape {list(real.shape)}, declared {list(tensor.shape)}",
            )
    if exact and found:
        raise LoadRefused("load-failed", f"{what} {', '.join(found)}: the model needs it, the manifest lacks it")


def _may_feed(given: tuple[int, ...], taken: tuple[int, ...]) -> bool:
    """Whether every concrete shape of `given` is one of `taken`: any size may not go where one is fixed."""
    return len(given) == len(taken) and all(there in (-1, here) for here, there in zip(given, taken, strict=True))


def _may_be(real: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether some concrete shape of `real` is one of `declared`; each answer is checked again."""
    return len(real) == len(declared) and all(
        -1 in (here, there) or here == there for here, there in zip(real, declared, strict=True)
    )


def _found(known: Mapping[str, Tensor], source: str, where: str) -> Tensor:
    tensor = known.get(source)
    if tensor is None:
        raise LoadRefused(
            "load-failed", f"{where}: there is no {source} by then; there are {', '.join(known) or 'none'}"
        )
    return tensor


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name=name, datatype=tensor.datatype, shape=tensor.shape)
