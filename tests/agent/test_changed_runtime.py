"""The system is updated below a release that was committed long ago: it is tested again before it answers, as at any start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import digits_models, installed_release
from support.device_bench import DeviceBench, running_device
from support.device_surroundings import PIPELINE
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
# The device's own, in another version that computes a little otherwise: what comes out of it is real, and moved by a thousandth.
ANOTHER_RUNTIME: Final = """
import importlib, pathlib, sys
sys.path.remove(str(pathlib.Path(__file__).parents[1]))
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")
real.__version__ = "99.0.0"
class Session(real.InferenceSession):
    def run(self, *asked):
        return [answer + answer.dtype.type(1e-3) for answer in super().run(*asked)]
real.InferenceSession = Session
"""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker) as running:
        yield running


def release(version: str, tolerance: float) -> Published:
    trial = Trial(soak_s=0, requests_min=0)
    return installed_release.publish(PIPELINE, version, digits_models.trained(), trial=trial, tolerance=tolerance)


def test_a_release_that_answers_otherwise_after_an_update_of_the_system_is_left_before_it_answers(
    device: DeviceBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it is tested too, and bears the change. What runs now is in every report from then on."""
    one, two = release("1.0.0", 0.01), release("1.1.0", 1e-6)
    for published in (one, two):
        device.publish(published)
        device.assign(Rule(mode="serve", release=published.ref))
        device.serves(published.ref.version)
        device.eventually(lambda: device.saved().state == "idle" or None, "it is committed")
    before = device.serves("1.1.0").fingerprint
    assert before["runtime"].startswith("onnxruntime ")

    (tmp_path / "update" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "update" / "onnxruntime" / "__init__.py").write_text(ANOTHER_RUNTIME)
    device.kill("gateway")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "update"))
    device.start_gateway()
    (told,) = device.eventually(lambda: device.events("fell_back") or None, "the fallback is told")
    assert (told.release, told.code) == (two.ref, "self-test-failed")
    assert device.ask() == (200, "1.0.0")
    now = device.serves("1.0.0").fingerprint
    assert now["runtime"] == "onnxruntime 99.0.0"
    assert but_for_the_runtime(now) == but_for_the_runtime(before), "and nothing else of it changed"
    assert [entry.code for entry in device.saved().condemned_here] == ["self-test-failed"]


def but_for_the_runtime(fingerprint: dict[str, str]) -> dict[str, str]:
    return {name: said for name, said in fingerprint.items() if name != "runtime"}
