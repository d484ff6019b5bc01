"""A release's stages as one graph: tensors wired by name, in an order in which each finds its inputs, and every fault of it.

Asked where a release is written, where it is published, and again by the worker that loads it. A source is `request.<tensor>` or
`<stage>.<output>`; what the request must have follows from what the stages take of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from holdfast_shared.tensor_forms import may_feed
from holdfast_shared.wire.release import Tensor

REQUEST: Final = "request"


class Wired(NamedTuple):
    """A stage: where each input of its model comes from, and what its model takes and answers."""

    name: str
    sources: Mapping[str, str]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Fault(NamedTuple):
    """`field` is a path in the release, such as `stages[1].inputs.image`."""

    field: str
    words: str

    def __str__(self) -> str:
        return f"{self.field}: {self.words}"


class Plan(NamedTuple):
    """`order`: places of the stages, each after those that feed it. `inputs` and `outputs` are the request's and the answer's."""

    order: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def plan(stages: Sequence[Wired], outputs: Mapping[str, str]) -> Plan | list[Fault]:
    """The plan, or all that is wrong. `outputs`: the answer's tensors, by where they come from."""
    answers = {f"{stage.name}.{tensor.name}": tensor for stage in stages for tensor in stage.outputs}
    found = [*_names(stages), *_wires(stages, answers)]
    asked, wrong = _asked(stages)
    found += wrong
    for name, source in outputs.items():
        if source not in answers:
            found.append(Fault(f"outputs.{name}", _nowhere(source, answers)))
    if found:
        return found
    order, circle = _ordered(stages)
    if circle:
        return [Fault("stages", f"{' → '.join(circle)} feed each other in a circle")]
    unused = _unused(stages, outputs.values())
    if unused:
        return [Fault(f"stages[{i}]", f"nothing uses what {stages[i].name} answers") for i in unused]
    return Plan(order, asked, tuple(_renamed(answers[source], name) for name, source in outputs.items()))


def _names(stages: Sequence[Wired]) -> list[Fault]:
    found = []
    for index, stage in enumerate(stages):
        if stage.name == REQUEST:
            found.append(Fault(f"stages[{index}].name", f"{REQUEST} is what the application sends; name it otherwise"))
        if any(other.name == stage.name for other in stages[:index]):
            found.append(Fault(f"stages[{index}].name", f"another stage is called {stage.name}"))
    return found


def _wires(stages: Sequence[Wired], answers: Mapping[str, Tensor]) -> list[Fault]:
    found = []
    for index, stage in enumerate(stages):
        taken = {tensor.name: tensor for tensor in stage.inputs}
        for name, source in stage.sources.items():
            here = f"stages[{index}].inputs.{name}"
            if name not in taken:
                found.append(Fault(here, f"the model takes {', '.join(sorted(taken))}"))
            elif not _is_of_request(source):
                given = answers.get(source)
                if given is None:
                    found.append(Fault(here, _nowhere(source, answers)))
                elif not _feeds(given, taken[name]):
                    found.append(Fault(here, f"{source} is {_form(given)}, the model takes {_form(taken[name])}"))
        found += [
            Fault(f"stages[{index}].inputs.{name}", f"is not wired; write {REQUEST}.<tensor> or <stage>.<output>")
            for name in taken
            if name not in stage.sources
        ]
    return found


def _asked(stages: Sequence[Wired]) -> tuple[tuple[Tensor, ...], list[Fault]]:
    """What the request must have: of a tensor that several stages take, what all of them can."""
    asked: dict[str, Tensor] = {}
    found = []
    for index, stage in enumerate(stages):
        for tensor in stage.inputs:
            source = stage.sources.get(tensor.name, "")
            if not _is_of_request(source):
                continue
            name = source.partition(".")[2]
            taken = _renamed(tensor, name)
            both = _both(asked.get(name, taken), taken)
            if both is None:
                words = f"{source} is {_form(asked[name])} to another stage, to this one {_form(tensor)}"
                found.append(Fault(f"stages[{index}].inputs.{tensor.name}", words))
            else:
                asked[name] = both
    return tuple(asked.values()), found


def _both(one: Tensor, other: Tensor) -> Tensor | None:
    """Every shape that both allow."""
    if one.datatype != other.datatype or len(one.shape) != len(other.shape):
        return None
    sizes = []
    for here, there in zip(one.shape, other.shape, strict=True):
        if here != there and -1 not in (here, there):
            return None
        sizes.append(max(here, there))
    return Tensor(name=one.name, datatype=one.datatype, shape=tuple(sizes))


def _ordered(stages: Sequence[Wired]) -> tuple[tuple[int, ...], list[str]]:
    """As written, as far as that goes; and the names of a circle, if there is one."""
    fed_by = _fed_by(stages)
    order: list[int] = []
    while len(order) < len(stages):
        ready = next((i for i in range(len(stages)) if i not in order and fed_by[i] <= set(order)), None)
        if ready is None:
            return tuple(order), _circle(stages, fed_by, set(order))
        order.append(ready)
    return tuple(order), []


def _circle(stages: Sequence[Wired], fed_by: Sequence[set[int]], done: set[int]) -> list[str]:
    """Every stage that is left is fed by one that is left: walking back from any of them comes round."""
    walked = [next(i for i in range(len(stages)) if i not in done)]
    while len(walked) == len(set(walked)):
        walked.append(min(fed_by[walked[-1]] - done))
    start = walked.index(walked[-1])
    return [stages[i].name for i in reversed(walked[start:])]


def _unused(stages: Sequence[Wired], sources: Iterable[str]) -> list[int]:
    fed_by, places = _fed_by(stages), {stage.name: i for i, stage in enumerate(stages)}
    used: set[int] = set()
    waiting = [places[source.partition(".")[0]] for source in sources]
    while waiting:
        one = waiting.pop()
        if one not in used:
            used.add(one)
            waiting += fed_by[one]
    return [i for i in range(len(stages)) if i not in used]


def _fed_by(stages: Sequence[Wired]) -> list[set[int]]:
    places = {stage.name: i for i, stage in enumerate(stages)}
    return [{places[s.partition(".")[0]] for s in stage.sources.values() if not _is_of_request(s)} for stage in stages]


def _is_of_request(source: str) -> bool:
    owner, _, name = source.partition(".")
    return owner == REQUEST and bool(name)


def _feeds(given: Tensor, taken: Tensor) -> bool:
    return given.datatype == taken.datatype and may_feed(given.shape, taken.shape)


def _form(tensor: Tensor) -> str:
    return f"{tensor.datatype} {list(tensor.shape)}"


def _nowhere(source: str, answers: Mapping[str, Tensor]) -> str:
    return f"there is no {source}; there are {', '.join(sorted(answers))}"


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name=name, datatype=tensor.datatype, shape=tensor.shape)
