"""What the worker measures of real answers: classes, confidence and margin, and the bins of the release's reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Tensor
from holdfast_shared.wire.report import LABELS_MAX, SCORE_BINS
from holdfast_worker import release_runner
from holdfast_worker.comparison import Comparison
from holdfast_worker.failures import LoadRefused
from holdfast_worker.measures import FEW_SCORES
from holdfast_worker.protocol import NO_HEADER, Compare, Measured, Outcome
from holdfast_worker.release_runner import Runner
from support import digits_models, installed_release

INK = {"name": "ink", "tensor": "request.image", "reduce": "mean", "edges": [4.0, 5.0, 6.0], "counts": [50] * 4}
TOP = {"name": "top", "tensor": "probabilities", "reduce": "max", "edges": [0.5, 0.9], "counts": [50] * 3}
CORNER = {"name": "corner", "tensor": "request.image", "element": 63, "edges": [0.5], "counts": [50] * 2}


def reference(*features: dict[str, Any]) -> bytes:
    return json.dumps({"features": list(features)}).encode()


def load(folder: Path, **details: Any) -> Runner:
    state = StateFolder(folder)
    ref = installed_release.install(state, "digits", "1.0.0", digits_models.trained(), **details)
    return release_runner.load(state.manifests, state.blobs, ref.digest)


def measured(runner: Runner, images: np.ndarray, request: str = "r-1") -> Measured | None:
    body = json.dumps({"id": request, "inputs": [installed_release.tensor("image", images)]}).encode()
    return runner.answer(body, NO_HEADER, False).measured


def test_every_row_is_measured_as_numpy_would(tmp_path: Path) -> None:
    runner = load(tmp_path, scores="probabilities", reference=reference(INK, TOP, CORNER))
    images = digits_models.images()[:7].astype(np.float32)
    outputs, _ = runner.run({"image": images})
    scores = np.sort(outputs["probabilities"], axis=1)
    found = measured(runner, images)
    assert found is not None
    assert found.request == "r-1"
    assert list(found.classes) == outputs["probabilities"].argmax(axis=1).tolist()
    assert list(found.confidence) == np.minimum(scores[:, -1] * SCORE_BINS, SCORE_BINS - 1).astype(int).tolist()
    margins = (scores[:, -1].astype(np.float64) - scores[:, -2]) * SCORE_BINS
    assert np.allclose(found.margin, np.floor(margins), atol=1)
    ink, top, corner = found.drift
    assert list(ink) == np.digitize(images.mean(axis=1), [4.0, 5.0, 6.0]).tolist()
    assert list(top) == np.digitize(scores[:, -1], [0.5, 0.9]).tolist()
    assert list(corner) == np.digitize(images[:, 63], [0.5]).tolist()


def test_one_row_is_measured_as_in_a_batch(tmp_path: Path) -> None:
    """Few scores are compared by other means than many; the bins are the same."""
    runner = load(tmp_path, scores="probabilities")
    images = digits_models.images()[: FEW_SCORES // 10 + 4].astype(np.float32)
    together = measured(runner, images)
    alone = [measured(runner, image.reshape(1, -1)) for image in images]
    assert together is not None
    assert len(images) * 10 > FEW_SCORES
    for name in ("classes", "confidence", "margin"):
        assert getattr(together, name) == tuple(getattr(one, name)[0] for one in alone)


@pytest.mark.parametrize("columns", [1, 2, FEW_SCORES + 1])
def test_scores_as_large_as_numbers_are_belong_to_the_last_bin(tmp_path: Path, columns: int) -> None:
    """A declared output need not be a probability, and what an application sends may make it large."""
    state, shape = StateFolder(tmp_path), (-1, -1)
    case = {"datatype": "FP64", "shape": [1, 1], "data": [1.0]}
    ref = installed_release.install(
        state,
        "digits",
        "1.0.0",
        digits_models.echo("FP64", 2),
        inputs=(Tensor(name="given", datatype="FP64", shape=shape),),
        outputs=(Tensor(name="answered", datatype="FP64", shape=shape),),
        golden=[{"inputs": [{"name": "given", **case}], "outputs": [{"name": "answered", **case}]}],
        scores="answered",
    )
    runner = release_runner.load(state.manifests, state.blobs, ref.digest)
    scores = np.full((1, columns), -1.7e308)
    scores[0, 0] = 1.7e308
    given = {"name": "given", "datatype": "FP64", "shape": [1, columns], "data": scores[0].tolist()}
    body = json.dumps({"inputs": [given]}).encode()
    reply = runner.answer(body, NO_HEADER, False)
    assert reply.outcome is Outcome.OK
    assert reply.measured is not None
    assert (reply.measured.classes, reply.measured.confidence) == ((0,), (SCORE_BINS - 1,))
    assert reply.measured.margin == (SCORE_BINS - 1,)
    answer = Compare(1, NO_HEADER, NO_HEADER, memoryview(body), memoryview(reply.body))
    compared = Comparison(runner).of(answer)
    assert (compared.rows, compared.agreed, compared.confidence) == (
        1,
        1,
        (SCORE_BINS - 1,) if columns > 1 else (),
    )


def test_what_is_measured_is_told_before_with_the_publishers_counts(tmp_path: Path) -> None:
    runner = load(tmp_path, scores="probabilities", reference=reference(INK))
    assert runner.measuring is not None
    assert runner.measuring.scores
    assert [(one.name, one.expected) for one in runner.measuring.features] == [("ink", (50, 50, 50, 50))]


def test_a_release_that_says_nothing_of_it_is_not_measured(tmp_path: Path) -> None:
    runner = load(tmp_path)
    assert runner.measuring is None
    assert measured(runner, digits_models.images()[:1].astype(np.float32)) is None


def test_a_large_batch_is_told_by_its_first_rows(tmp_path: Path) -> None:
    runner = load(tmp_path, scores="probabilities")
    found = measured(runner, digits_models.images()[: LABELS_MAX + 9].astype(np.float32))
    assert found is not None
    assert len(found.classes) == len(found.confidence) == len(found.margin) == LABELS_MAX


def test_null_is_not_measured(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    ref = installed_release.install(
        state, "digits", "1.0.0", digits_models.nan_on_some(), scores="probabilities", reference=reference(INK)
    )
    runner = release_runner.load(state.manifests, state.blobs, ref.digest)
    assert measured(runner, digits_models.blank_images()[:1].reshape(1, -1)) is None
    assert measured(runner, digits_models.inked_images()[:1].reshape(1, -1)) is not None


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"scores": "certainty"}, "scores: there is no tensor certainty; there are probabilities"),
        ({"reference": reference({**INK, "tensor": "request.sound"})}, "there is no tensor request.sound"),
        ({"reference": b"{}"}, "reference"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_load(tmp_path: Path, details: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadRefused, match=words) as found:
        load(tmp_path, **details)
    assert found.value.code == "load-failed"


def test_a_reference_is_verified_as_every_other_blob(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    ref = installed_release.install(state, "digits", "1.0.0", digits_models.trained(), reference=reference(INK))
    for path in state.blobs.iterdir():
        if path.read_bytes() == reference(INK):
            path.write_bytes(reference(INK).replace(b"50", b"51"))
    with pytest.raises(LoadRefused) as found:
        release_runner.load(state.manifests, state.blobs, ref.digest)
    assert found.value.code == "damaged-blob"
