"""Two pipelines on one shipped device, of different runtimes and stages: what happens to one never happens to the other."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Guardrail, Requirement, Trial
from support import digits_models, installed_release, two_stages
from support.device_bench import DeviceBench, Traffic, running_device
from support.device_surroundings import PIPELINE
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
OTHER = "glyphs"
GUARDRAILS = (Guardrail(metric="null_rate", threshold=0.01, action="fall_back", requests_min=10, window_s=10),)
TRIAL = Trial(soak_s=1, requests_min=5)


def digits(version: str, model: bytes) -> Published:
    return installed_release.publish(PIPELINE, version, model, guardrails=GUARDRAILS, trial=TRIAL)


def requiring(version: str) -> Published:
    """The other pipeline's, which needs that version of the digits beside it."""
    wanted = (Requirement(pipeline=PIPELINE, at_least=version),)
    return two_stages.published(
        OTHER, version, guardrails=GUARDRAILS, trial=TRIAL, release_changes={"requires": wanted}
    )


def serve(*releases: Published) -> list[Rule]:
    return [Rule(mode="serve", release=one.ref) for one in releases]


def workers(device: DeviceBench) -> set[int]:
    children = psutil.Process(device.processes["gateway"].pid).children()
    return {child.pid for child in children if "holdfast_worker" in " ".join(child.cmdline())}


def test_one_pipeline_that_goes_bad_leaves_the_other_alone(tmp_path: Path) -> None:
    """ONNX beside two stages of ONNX and TFLite: one falls back under traffic; the other keeps its worker, its record and
    every request."""
    glyphs = two_stages.published(OTHER, "1.0.0", guardrails=GUARDRAILS, trial=TRIAL)
    good, bad = digits("1.0.0", digits_models.trained()), digits("1.1.0", digits_models.nan_on_some())
    with running_mosquitto() as broker, running_device(tmp_path, broker) as device:
        for published in (glyphs, good, bad):
            device.publish(published)
        device.assign(*serve(glyphs), pipeline=OTHER)
        device.serves("1.0.0", OTHER)
        (its_worker,) = workers(device)
        with Traffic(device, OTHER) as untouched:
            device.assign(*serve(good))
            device.serves("1.0.0")
            device.eventually(lambda: device.saved(OTHER).current, "the other one is committed")
            before = device.saved(OTHER)
            with Traffic(device) as troubled:
                device.assign(*serve(bad, good))
                (told,) = device.eventually(lambda: device.events("fell_back") or None, "the fallback is told")
                newest = device.serves("1.0.0")
        assert (told.pipeline, told.code) == (PIPELINE, "guardrail-null-rate")
        assert troubled.failed == untouched.failed == []
        assert {version for _, version in untouched.answers} == {"1.0.0"}
        assert len(untouched.answers) > 20
        assert its_worker in workers(device)
        assert device.saved(OTHER) == before
        assert device.saved(OTHER).condemned_here == ()
        assert {one.pipeline for one in newest.pipelines} == {PIPELINE, OTHER}
        assert {words.split()[0] for words in newest.fingerprint["runtime"].split("; ")} == {
            "onnxruntime",
            "ai-edge-litert",
        }


def test_pipelines_that_require_each_other_go_forward_in_order_and_back_together(tmp_path: Path) -> None:
    """The newer glyphs wait, staged, for the newer digits; when those go bad under traffic, both go back in one save."""
    old, new = digits("1.0.0", digits_models.trained()), digits("1.1.0", digits_models.nan_on_some())
    old_other, new_other = requiring("1.0.0"), requiring("1.1.0")
    with running_mosquitto() as broker, running_device(tmp_path, broker) as device:
        for published in (old, new, old_other, new_other):
            device.publish(published)
        device.assign(*serve(old))
        device.assign(*serve(old_other), pipeline=OTHER)
        device.serves("1.0.0")
        device.serves("1.0.0", OTHER)
        device.eventually(lambda: device.saved(OTHER).current, "the first of both are committed")
        device.assign(*serve(new_other, old_other), pipeline=OTHER)
        device.eventually(lambda: device.saved(OTHER).state == "staged" or None, "the newer glyphs wait")
        with Traffic(device, OTHER) as other:
            device.assign(*serve(new, old))
            device.serves("1.1.0", OTHER)
            with Traffic(device) as bad:
                (fell,) = device.eventually(lambda: device.events("fell_back") or None, "the digits fall back")
                (taken,) = device.eventually(lambda: device.events("rolled_back") or None, "the glyphs go along")
                device.serves("1.0.0")
                device.serves("1.0.0", OTHER)
        assert (fell.pipeline, fell.code) == (PIPELINE, "guardrail-null-rate")
        assert (taken.pipeline, taken.code) == (OTHER, "requirement-unmet")
        assert bad.failed == other.failed == []
        assert device.saved(OTHER).condemned_here == ()
        both = [device.saved(name).activations[-1].at for name in (PIPELINE, OTHER)]
        assert both[0] == both[1], "one moment, one save"
