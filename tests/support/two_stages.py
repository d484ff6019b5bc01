"""A pipeline of two stages in two runtimes: an ONNX model brightens the image, a TFLite model says which digit it shows."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import numpy as np

from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import Blob, Stage, Tensor
from support import digits_models, tflite_models
from support.installed_release import Published, golden_cases, publish, sealed

_IMAGE: Final = Tensor(name="image", datatype="FP32", shape=(-1, 64))


def published(pipeline: str, version: str, **details: Any) -> Published:
    """It answers as `tflite_models.trained` does; `details` are those of `installed_release.publish`."""
    brighten = digits_models.model(
        [digits_models.node("Mul", ["image", "by"], ["brighter"])],
        constants={"by": np.float32(1)},
        outputs=[digits_models.pixels("brighter")],
    )
    brighter = Tensor(name="brighter", datatype="FP32", shape=(-1, 64))
    first = publish(f"{pipeline}-brighten", version, brighten, inputs=(_IMAGE,), outputs=(brighter,), golden=[])
    second = publish(pipeline, version, tflite_models.trained(), runtime="tflite", golden=[], **details)
    cases = json.dumps({"cases": golden_cases(tflite_models.trained(), "tflite")}).encode()
    blob = Blob(digest=digest_of(cases), size_bytes=len(cases))
    release = msgspec.structs.replace(
        second.release,
        stages=(
            Stage(name="classify", model=second.release.stages[0].model, inputs={"image": "brighten.brighter"}),
            Stage(name="brighten", model=first.release.stages[0].model, inputs={"image": "request.image"}),
        ),
        outputs={"probabilities": "classify.probabilities"},
        self_test=msgspec.structs.replace(second.release.self_test, blob=blob),
    )
    return sealed(release, (*second.models, *first.models), {**first.blobs, **second.blobs, blob.digest: cases})
