"""A whole device whose release is measured by more than its counts: labels that come later, and drift."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Guardrail, Trial
from holdfast_shared.wire.report import Window
from support import digits_models, installed_release
from support.device_bench import DeviceBench, running_device
from support.device_surroundings import PIPELINE
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
ACCURACY = Guardrail(metric="accuracy_proxy", threshold=0.8, action="fall_back", requests_min=20, window_s=20)
DRIFT = Guardrail(metric="drift", threshold=0.2, action="halt", requests_min=200, window_s=60)
# Less than any worker with a runtime holds.
MEMORY = Guardrail(metric="memory_bytes", threshold=8 * 1024**2, action="fall_back", requests_min=5, window_s=20)
# As if the publisher's images had been far darker than any of ours.
DARK = {"name": "ink", "tensor": "request.image", "reduce": "mean", "edges": [9.0, 10.0], "counts": [100, 100, 100]}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker) as running:
        yield running


def release(version: str, **details: Any) -> Published:
    trial = Trial(soak_s=1, requests_min=5)
    return installed_release.publish(PIPELINE, version, digits_models.trained(), trial=trial, **details)


class Application:
    """Asks under an id, and tells what it should have been."""

    def __init__(self, device: DeviceBench) -> None:
        self._device = device
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10))
        self._asked = 0

    def ask(self, rows: int = 1) -> tuple[str, str, list[int]]:
        """The id, the version that answered, and the classes."""
        self._asked += 1
        first = self._asked % (len(digits_models.images()) - rows)
        image = digits_models.images()[first : first + rows].astype(np.float32)
        body = json.dumps({"id": f"a-{self._asked}", "inputs": [installed_release.tensor("image", image)]})
        answer = self._pool.request("POST", f"{self._device.address}/v2/models/{PIPELINE}/infer", body=body)
        found: Any = json.loads(answer.data)
        assert answer.status == 200, found
        scores = np.array(found["outputs"][0]["data"]).reshape(rows, -1)
        return f"a-{self._asked}", str(found["model_version"]), scores.argmax(axis=1).tolist()

    def label(self, request: str, label: int) -> int:
        body = json.dumps({"id": request, "label": label})
        place = f"{self._device.address}/v2/models/{PIPELINE}/feedback"
        return int(self._pool.request("POST", place, body=body).status)


def test_a_release_whose_predictions_turn_out_wrong_is_left_by_the_device_itself(device: DeviceBench) -> None:
    """It answers every request, fast and never null: only the labels say that it is bad."""
    good, wrong = release("1.0.0"), release("1.1.0", scores="probabilities", guardrails=(ACCURACY,))
    device.publish(good)
    device.publish(wrong)
    device.assign(Rule(mode="serve", release=good.ref))
    device.serves("1.0.0")
    device.assign(Rule(mode="serve", release=wrong.ref), Rule(mode="serve", release=good.ref))
    application = Application(device)

    def told() -> Any:
        request, version, (answered,) = application.ask()
        if version == "1.1.0":
            assert application.label(request, (answered + 1) % 10) == 200
        return device.events("fell_back") or None

    (event,) = device.eventually(told, "the fallback is told")
    assert (event.code, event.release) == ("guardrail-accuracy", wrong.ref)
    assert "accuracy_proxy:" in event.detail
    device.serves("1.0.0")
    assert [one.code for one in device.saved().condemned_here] == ["guardrail-accuracy"]

    def labelled() -> list[Window] | None:
        return [window for report in device.reports for window in report.windows if window.labelled] or None

    windows = device.eventually(labelled, "the labels are reported")
    assert all(window.agreed == 0 for window in windows)


def test_a_release_that_holds_too_much_is_left_by_the_device_itself(device: DeviceBench) -> None:
    good, fat = release("1.0.0"), release("1.1.0", guardrails=(MEMORY,))
    device.publish(good)
    device.publish(fat)
    device.assign(Rule(mode="serve", release=good.ref))
    device.serves("1.0.0")
    device.assign(Rule(mode="serve", release=fat.ref), Rule(mode="serve", release=good.ref))
    application = Application(device)

    def told() -> Any:
        application.ask()
        return device.events("fell_back") or None

    (event,) = device.eventually(told, "the fallback is told")
    assert (event.code, event.release) == ("guardrail-memory", fat.ref)
    assert "its worker held" in event.detail
    device.serves("1.0.0")
    assert [one.code for one in device.saved().condemned_here] == ["guardrail-memory"]


def test_drift_is_told_and_takes_nothing_back(device: DeviceBench) -> None:
    """Once, after two windows in a row, with code guardrail-drift; the release serves on, and is condemned nowhere."""
    one = release("1.0.0", reference=json.dumps({"features": [DARK]}).encode(), guardrails=(DRIFT,))
    device.publish(one)
    device.assign(Rule(mode="serve", release=one.ref))
    device.serves("1.0.0")
    application = Application(device)

    def told() -> Any:
        application.ask(rows=50)
        return device.events("guardrail") or None

    (event,) = device.eventually(told, "drift is told")
    assert (event.code, event.release) == ("guardrail-drift", one.ref)
    assert "ink has an index of" in event.detail
    watched = sum(sum(drift.counts) for report in device.reports for w in report.windows for drift in w.drift)
    assert watched >= 2 * DRIFT.requests_min
    seen = len(device.reports)

    def later() -> bool:
        application.ask(rows=50)
        return len(device.reports) >= seen + 4

    device.eventually(later, "more reports")
    assert len(device.events("guardrail")) == 1
    assert device.events("fell_back") == device.events("condemned_here") == []
    device.serves("1.0.0")
    assert device.saved().condemned_here == ()
