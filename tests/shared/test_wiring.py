"""Stages are one graph: what is wired wrongly has one clear fault that names the field, and what is right runs in one order."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared.wire.release import Tensor
from holdfast_shared.wiring import Fault, Plan, Wired, plan


def tensor(name: str, shape: tuple[int, ...] = (-1, 64), datatype: Any = "FP32") -> Tensor:
    return Tensor(name=name, datatype=datatype, shape=shape)


def stage(name: str, sources: dict[str, str], *, shape: tuple[int, ...] = (-1, 64), datatype: Any = "FP32") -> Wired:
    """Answers `out` FP32 [-1, 64]; takes what `sources` names, all of one form."""
    return Wired(name, sources, tuple(tensor(i, shape, datatype) for i in sources), (tensor("out"),))


SCALE = stage("scale", {"image": "request.image"})


def test_one_stage_takes_from_the_request_and_answers_it() -> None:
    assert plan([SCALE], {"y": "scale.out"}) == Plan((0,), (tensor("image"),), (tensor("y"),))


def test_stages_run_after_what_feeds_them_however_they_are_written() -> None:
    late = [stage("third", {"a": "first.out", "b": "second.out"}), stage("second", {"a": "first.out"})]
    found = plan([*late, stage("first", {"a": "request.x"})], {"y": "third.out"})
    assert isinstance(found, Plan)
    assert found.order == (2, 1, 0)


def test_a_request_tensor_is_what_every_stage_that_takes_it_can() -> None:
    stages = [stage("one", {"a": "request.x"}, shape=(-1, 64)), stage("two", {"a": "request.x"}, shape=(1, -1))]
    found = plan(stages, {"p": "one.out", "q": "two.out"})
    assert isinstance(found, Plan)
    assert found.inputs == (tensor("x", (1, 64)),)


class Wrong(NamedTuple):
    name: str
    stages: list[Wired]
    outputs: dict[str, str]
    field: str
    words: str


WRONG = [
    Wrong("from nowhere", [stage("a", {"i": "b.out"})], {"y": "a.out"}, "stages[0].inputs.i", "there is no b.out"),
    Wrong(
        "no such output",
        [SCALE, stage("a", {"i": "scale.score"})],
        {"y": "a.out"},
        "stages[1].inputs.i",
        "there is no scale.score; there are a.out, scale.out",
    ),
    Wrong("answer from nowhere", [SCALE], {"y": "scale.y"}, "outputs.y", "there is no scale.y"),
    Wrong("answer of the request", [SCALE], {"y": "request.image"}, "outputs.y", "there is no request.image"),
    Wrong("no source", [stage("a", {"i": "request"})], {"y": "a.out"}, "stages[0].inputs.i", "there is no request"),
    Wrong(
        "other shape",
        [SCALE, stage("a", {"i": "scale.out"}, shape=(-1, 10))],
        {"y": "a.out"},
        "stages[1].inputs.i",
        "scale.out is FP32 [-1, 64], the model takes FP32 [-1, 10]",
    ),
    Wrong(
        "any size where one is fixed",
        [SCALE, stage("a", {"i": "scale.out"}, shape=(1, 64))],
        {"y": "a.out"},
        "stages[1].inputs.i",
        "the model takes FP32 [1, 64]",
    ),
    Wrong(
        "other type",
        [SCALE, stage("a", {"i": "scale.out"}, datatype="INT8")],
        {"y": "a.out"},
        "stages[1].inputs.i",
        "scale.out is FP32 [-1, 64], the model takes INT8 [-1, 64]",
    ),
    Wrong(
        "request in two types",
        [SCALE, stage("a", {"i": "request.image"}, datatype="INT8")],
        {"y": "a.out", "z": "scale.out"},
        "stages[1].inputs.i",
        "request.image is FP32 [-1, 64] to another stage, to this one INT8 [-1, 64]",
    ),
    Wrong("a circle of one", [stage("a", {"i": "a.out"})], {"y": "a.out"}, "stages", "a → a"),
    Wrong(
        "a circle behind another stage",
        [SCALE, stage("a", {"i": "b.out", "j": "scale.out"}), stage("b", {"i": "a.out"})],
        {"y": "b.out"},
        "stages",
        "a → b → a",
    ),
    Wrong(
        "unused",
        [SCALE, stage("a", {"i": "request.image"}), stage("b", {"i": "a.out"})],
        {"y": "scale.out"},
        "stages[1]",
        "nothing uses what a answers",
    ),
    Wrong(
        "two of one name",
        [SCALE, SCALE],
        {"y": "scale.out"},
        "stages[1].name",
        "another stage is called scale",
    ),
    Wrong(
        "called request",
        [stage("request", {"i": "request.x"})],
        {"y": "request.out"},
        "stages[0].name",
        "name it otherwise",
    ),
    Wrong(
        "not wired",
        [Wired("a", {}, (tensor("i"),), (tensor("out"),))],
        {"y": "a.out"},
        "stages[0].inputs.i",
        "is not wired",
    ),
    Wrong(
        "wired to no input",
        [Wired("a", {"i": "request.x", "j": "request.x"}, (tensor("i"),), (tensor("out"),))],
        {"y": "a.out"},
        "stages[0].inputs.j",
        "the model takes i",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_wire_is_one_fault_that_names_its_field(wrong: Wrong) -> None:
    found = plan(wrong.stages, wrong.outputs)
    assert isinstance(found, list)
    assert found[0].field == wrong.field
    assert wrong.words in found[0].words


SOURCES = ["request.x", "a.out", "b.out", "c.out", "d.out"]


@given(
    stages=st.lists(
        st.builds(
            stage,
            st.sampled_from("abcd"),
            st.dictionaries(st.sampled_from("ij"), st.sampled_from(SOURCES), min_size=1),
        ),
        min_size=1,
        max_size=5,
    ),
    outputs=st.dictionaries(st.sampled_from("yz"), st.sampled_from(["a.out", "b.out", "c.out"]), min_size=1),
)
def test_any_graph_ends_in_a_plan_that_runs_or_in_faults(stages: list[Wired], outputs: dict[str, str]) -> None:
    """In a plan each stage finds its inputs, and none stands there that no answer needs."""
    found = plan(stages, outputs)
    if not isinstance(found, Plan):
        assert found
        assert all(isinstance(one, Fault) for one in found)
        return
    there = {f"request.{one.name}" for one in found.inputs}
    for place in found.order:
        assert set(stages[place].sources.values()) <= there
        there.add(f"{stages[place].name}.out")
    assert sorted(found.order) == list(range(len(stages)))
