"""A light device counts as the shipped gateway does: the same rules, from what it really ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from demonstration.digits import Images
from demonstration.light_plane import LightPlane, Runners
from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway.control import (
    AcknowledgeWindows,
    CloseWindows,
    FromGateway,
    Route,
    Routes,
    Status,
    Switched,
    Tallied,
    Windows,
)
from holdfast_shared.assign import Target
from holdfast_shared.wire.report import Window
from support import digits_models, installed_release

ASKED = 60
IMAGES = Images(digits_models.images(), np.zeros(len(digits_models.images()), dtype=np.int64))
T = TypeVar("T")
Install = Callable[[str, bytes], Target]


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


@pytest.fixture
def install(state: StateFolder) -> Install:
    return lambda version, model: Target(release=installed_release.install(state, "digits", version, model))


@pytest.fixture
def plane(state: StateFolder) -> LightPlane:
    return LightPlane(Runners(state.manifests, state.blobs), IMAGES, seed=1)


def route(plane: LightPlane, serving: Target, refuge: Target | None = None, testing: Target | None = None) -> Status:
    routes = (Route(pipeline="digits", serving=serving, refuge=refuge, testing=testing),)
    (said,) = plane.tell(Routes(serial=7, routes=routes))
    assert isinstance(said, Status)
    return said


def windows(plane: LightPlane) -> dict[str, Window]:
    (said,) = plane.tell(CloseWindows())
    assert isinstance(said, Windows)
    return {one.release.version: one for one in said.windows}


def of(kind: type[T], said: list[FromGateway]) -> list[T]:
    return [one for one in said if isinstance(one, kind)]


def test_every_request_is_counted_where_it_was_answered(plane: LightPlane, install: Install) -> None:
    """Σ requests + Σ input faults − Σ failed over = what was asked; each null is charged, and answered by the refuge."""
    bad, good = install("2.0.0", digits_models.nan_on_some()), install("1.0.0", digits_models.trained())
    route(plane, bad, good)
    list(plane.ask(ASKED))
    found = windows(plane)
    serving, refuge = found["2.0.0"], found["1.0.0"]
    assert 0 < serving.nulls < ASKED, "some images, not all"
    assert (serving.requests, serving.failed_over, serving.errors) == (ASKED, serving.nulls, 0)
    assert refuge.requests == serving.nulls
    assert (serving.latency.count, refuge.latency.count) == (serving.requests, refuge.requests)


def test_a_request_that_fails_in_both_slots_counts_against_neither(plane: LightPlane, install: Install) -> None:
    first, second = install("2.0.0", digits_models.nan_on_some()), install("1.0.0", digits_models.nan_on_some())
    route(plane, first, second)
    list(plane.ask(ASKED))
    found = windows(plane)
    assert found["2.0.0"].nulls == 0 < found["2.0.0"].input_faults
    assert found["2.0.0"].requests + found["2.0.0"].input_faults == ASKED
    assert "1.0.0" not in found


def test_without_a_refuge_a_null_is_charged_and_nobody_answered_it(plane: LightPlane, install: Install) -> None:
    route(plane, install("2.0.0", digits_models.nan_on_some()))
    list(plane.ask(ASKED))
    found = windows(plane)["2.0.0"]
    assert (found.requests, found.failed_over) == (ASKED, 0)
    assert found.nulls > 0


def test_a_tally_slides_over_windows_that_are_closed(plane: LightPlane, install: Install) -> None:
    serving = install("1.0.0", digits_models.trained())
    route(plane, serving)
    list(plane.ask(10))
    windows(plane)
    (tallied,) = of(Tallied, list(plane.ask(5)))
    assert (tallied.window.requests, tallied.first_bad_monotonic_us) == (15, None)


def test_the_first_good_answer_is_told_once(plane: LightPlane, install: Install) -> None:
    serving = install("1.0.0", digits_models.trained())
    route(plane, serving)
    assert [one.target for one in of(Switched, list(plane.ask(3)))] == [serving]
    assert of(Switched, list(plane.ask(3))) == []


def test_a_window_stays_until_it_is_acknowledged(plane: LightPlane, install: Install) -> None:
    route(plane, install("1.0.0", digits_models.trained()))
    list(plane.ask(3))
    (window,) = windows(plane).values()
    assert list(windows(plane).values()) == [window]
    list(plane.tell(AcknowledgeWindows(windows=(window.window,))))
    assert windows(plane) == {}


def test_a_release_that_cannot_load_says_its_code(plane: LightPlane, install: Install, state: StateFolder) -> None:
    serving = install("1.0.0", digits_models.trained())
    other = Target(release=installed_release.install(state, "digits", "2.0.0", b"no model", golden=b'{"cases": []}'))
    said = route(plane, serving, testing=other)
    assert {one.target: (one.state, one.code) for one in said.slots} == {
        serving: ("ready", ""),
        other: ("failed", "load-failed"),
    }
