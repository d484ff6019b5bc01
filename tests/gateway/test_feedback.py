"""Delayed labels: an application tells what a prediction should have been, and the release is counted by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast_gateway.control import Tallied
from holdfast_gateway.counts import Counts
from holdfast_gateway.recent_answers import AGE_MAX_S, ID_CHARACTERS_MAX, REMEMBERED_MAX, Prediction, RecentAnswers
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import ReleaseRef
from support import digits_models, installed_release
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, Http, running_gateway

TARGET = Target(release=ReleaseRef(version="1.0.0", digest="sha256:" + "1" * 64))
INK = {"name": "ink", "tensor": "request.image", "reduce": "mean", "edges": [4.0, 5.0, 6.0], "counts": [50] * 4}


def prediction(*classes: int, at_s: float = 0.0) -> Prediction:
    return Prediction(Counts("p", TARGET, wall_us=0), "1.0.0", classes, at_s)


def test_only_so_many_predictions_are_remembered_the_newest() -> None:
    recent = RecentAnswers()
    for number in range(REMEMBERED_MAX + 10):
        recent.remember(str(number), prediction(number))
    assert len(recent) == REMEMBERED_MAX
    assert recent.of("9", 1.0) is None
    assert recent.of("10", 1.0) is not None
    recent.remember("10", prediction(7))
    found = recent.of("10", 1.0)
    assert found is not None
    assert found.classes == (7,), "of an id that comes again the newest answer counts"
    recent.remember("x" * (ID_CHARACTERS_MAX + 1), prediction(1))
    assert recent.of("x" * (ID_CHARACTERS_MAX + 1), 1.0) is None


def test_a_label_comes_in_time_or_never() -> None:
    recent = RecentAnswers()
    recent.remember("a", prediction(1, at_s=5.0))
    assert recent.of("a", 5.0 + AGE_MAX_S) is not None
    assert recent.of("a", 5.1 + AGE_MAX_S) is None
    assert len(recent) == 0


# -- with the shipped worker and a real model


class Served:
    """One gateway, a release that says which output holds its scores, and a connection."""

    def __init__(self, bench: GatewayBench) -> None:
        ref = installed_release.install(
            bench.folder,
            PIPELINE,
            "1.0.0",
            digits_models.trained(),
            scores="probabilities",
            reference=json.dumps({"features": [INK]}).encode(),
        )
        self.bench = bench
        self.agent: AgentEnd = bench.agent()
        self.agent.until_in_force(self.agent.serve(Target(release=ref)))
        self.http: Http = bench.http()

    def ask(self, request: str, count: int = 1, first: int = 0) -> list[int]:
        """The classes that were answered."""
        images = digits_models.images()[first : first + count].astype(np.float32)
        body = json.dumps({"id": request, "inputs": [installed_release.tensor("image", images)]}).encode()
        status, answer = self.http.infer_raw(body)
        assert status == 200
        data = np.array(answer["outputs"][0]["data"]).reshape(count, -1)
        found: list[int] = data.argmax(axis=1).tolist()
        return found

    def tell(self, **told: Any) -> tuple[int, Any]:
        status, _, answer = self.http.ask("POST", f"/v2/models/{PIPELINE}/feedback", json.dumps(told).encode())
        return status, json.loads(answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root: Path = tmp_path_factory.mktemp("feedback")
    with running_gateway(root, worker=(sys.executable, "-m", "holdfast_worker")) as bench:
        found = Served(bench)
        with found.http:
            yield found


@pytest.mark.slow
def test_a_label_is_counted_once_for_the_release_that_predicted(served: Served) -> None:
    """Right and wrong ones, of single requests and of batches; the agent hears of it within a second."""
    served.agent.windows()
    (first,) = served.ask("r-1")
    batch = served.ask("r-2", count=3, first=5)
    since = len(served.agent.heard)
    assert served.tell(id="r-1", label=first) == (
        200,
        {"id": "r-1", "model_name": PIPELINE, "model_version": "1.0.0", "predicted": [first], "agreed": 1},
    )
    status, answer = served.tell(id="r-2", labels=[batch[0], batch[1], (batch[2] + 1) % 10])
    assert (status, answer["predicted"], answer["agreed"]) == (200, batch, 2)
    assert served.tell(id="r-1", label=first)[0] == 404, "a label counts once"
    tallied = served.agent.until(
        lambda one: one if isinstance(one, Tallied) and one.window.labelled >= 4 else None, since=since
    )
    assert (tallied.window.labelled, tallied.window.agreed) == (4, 3)
    metrics = served.http.ask("GET", "/metrics")[2].decode()
    assert f'holdfast_labelled_total{{model="{PIPELINE}",version="1.0.0"}} 4' in metrics
    window = served.agent.windows()[-1]
    assert (window.labelled, window.agreed) == (4, 3)


def unmatched(served: Served) -> int:
    name = f'holdfast_unmatched_labels_total{{model="{PIPELINE}"}} '
    lines = served.http.ask("GET", "/metrics")[2].decode().splitlines()
    return next(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


@pytest.mark.slow
def test_what_cannot_be_labelled_is_answered_with_the_reason(served: Served) -> None:
    served.ask("r-3")
    before = unmatched(served)
    status, answer = served.tell(id="never", label=1)
    assert status == 404
    assert "'never': it is unknown, labelled already, older than 24 h" in answer["error"]
    assert "ask under an id of its own" in answer["error"]
    assert unmatched(served) == before + 1
    assert served.tell(id="r-3", labels=[1, 2]) == (400, {"error": "2 label(s) for 1 prediction(s) under the id 'r-3'"})
    for told in ({"id": "r-3"}, {"id": "r-3", "label": -1}, {"label": 1}, {"id": "r-3", "label": 1, "labels": [1]}):
        assert served.tell(**told)[0] == 400
    assert served.tell(id="r-3", label=1)[0] == 200, "and what was refused has used nothing up"
    assert served.http.ask("GET", f"/v2/models/{PIPELINE}/feedback")[0] == 405
    assert served.http.ask("POST", "/v2/models/other/feedback", b"{}")[0] == 404


@pytest.mark.slow
def test_windows_hold_confidence_margin_and_the_bins_of_the_reference(served: Served) -> None:
    """Of exactly the rows that were answered well."""
    served.agent.windows()
    images = digits_models.images()[:40].astype(np.float32)
    for number in range(40):
        served.ask(f"w-{number}", first=number)
    window = served.agent.windows()[-1]
    assert (sum(window.confidence), sum(window.margin), window.requests) == (40, 40, 40)
    (ink,) = window.drift
    assert (ink.feature, ink.expected) == ("ink", (50, 50, 50, 50))
    wanted = np.bincount(np.digitize(images.mean(axis=1), [4.0, 5.0, 6.0]), minlength=4)
    assert list(ink.counts) == wanted.tolist()
