"""Releases as a publisher signs them and as a device has them on disk: manifests and blobs, by digest.

ref = install(state, "digits", "1.0.0", digits_models.trained())
runner = release_runner.load(state.manifests, state.blobs, ref.digest)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable, strict_json
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import PrivateKey, sign
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import (
    MODEL_TYPE,
    RELEASE_TYPE,
    Blob,
    DataSet,
    File,
    Framework,
    Guardrail,
    Hardware,
    Limits,
    ModelRef,
    ModelVersion,
    Release,
    Runtime,
    SelfTest,
    Stage,
    Tensor,
    Trial,
    Variant,
    reference_to,
)
from holdfast_worker.runtime import runtime_named
from support import digits_models

STAGE: Final = "model"
# Whoever checks signatures takes `PUBLISHER.public`.
PUBLISHER: Final = PrivateKey.generate()
_GOLDEN_IMAGES: Final = 2


class Published(NamedTuple):
    """A release as a publisher hands it over: two envelopes and the blobs that they name."""

    ref: ReleaseRef
    release: Release
    models: tuple[ModelVersion, ...]
    manifests: dict[str, bytes]  # envelopes, by the digest of their payload
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return self.ref.digest

    @property
    def model_digest(self) -> str:
        return self.release.stages[0].model.digest

    @property
    def weights(self) -> str:
        """The digest of its largest blob."""
        return max(self.blobs, key=lambda digest: len(self.blobs[digest]))

    def install(self, state: StateFolder) -> None:
        """What fetch leaves behind when it has staged a release. May be repeated."""
        durable.make_folder(state.manifests)
        durable.make_folder(state.blobs)
        for digest, blob in self.blobs.items():
            durable.write_file(state.blob(digest), blob)
        for digest, envelope in self.manifests.items():
            durable.write_file(state.manifest(digest), envelope)


def install(state: StateFolder, pipeline: str, version: str, model: bytes, **details: Any) -> ReleaseRef:
    """Publish and lay out; `details` are those of `publish`."""
    published = publish(pipeline, version, model, **details)
    published.install(state)
    return published.ref


def publish(
    pipeline: str,
    version: str,
    model: bytes,
    *,
    inputs: tuple[Tensor, ...] = digits_models.INPUTS,
    outputs: tuple[Tensor, ...] = digits_models.OUTPUTS,
    golden: Sequence[dict[str, Any]] | bytes | None = None,
    tolerance: float = 1e-4,
    sentinels: dict[str, float] | None = None,
    guardrails: tuple[Guardrail, ...] = (),
    trial: Trial | None = None,
    limits: Limits | None = None,
    runtime: Runtime = "onnx",
    scores: str | None = None,
    reference: bytes | None = None,
    key: PrivateKey = PUBLISHER,
    model_key: PrivateKey | None = None,
    release_changes: Mapping[str, Any] | None = None,
    model_changes: Mapping[str, Any] | None = None,
    variant_changes: Mapping[str, Any] | None = None,
) -> Published:
    """A signed release of one stage. `golden` None: two real images and what the model answers to them, if it can.

    The `…_changes` replace fields of the manifests: for what a careful publisher would not do. `model_key`: who signs the
    model, if another than the release.
    """
    cases = _cases(golden if golden is not None else golden_cases(model, runtime))
    described = _described(pipeline, version, model, runtime, (inputs, outputs), (model_changes, variant_changes))
    model_payload = strict_json.encode(described)
    release = _changed(
        Release(
            pipeline=pipeline,
            version=version,
            stages=(
                Stage(
                    name=STAGE,
                    model=ModelRef(name=pipeline, version=version, digest=digest_of(model_payload)),
                    inputs={tensor.name: f"request.{tensor.name}" for tensor in inputs},
                ),
            ),
            outputs={tensor.name: f"{STAGE}.{tensor.name}" for tensor in outputs},
            self_test=SelfTest(
                blob=Blob(digest=digest_of(cases), size_bytes=len(cases)),
                absolute_tolerance=tolerance,
                relative_tolerance=tolerance,
            ),
            guardrails=guardrails,
            trial=trial or Trial(soak_s=0, requests_min=0),
            limits=limits or Limits(),
            sentinels=sentinels or {},
            scores=scores or msgspec.UNSET,
            reference=Blob(digest=digest_of(reference), size_bytes=len(reference)) if reference is not None else None,
        ),
        release_changes,
    )
    blobs: dict[str, bytes] = {digest_of(blob): blob for blob in (model, cases, reference) if blob is not None}
    return sealed(release, (described,), blobs, key, model_key)


def _described(
    name: str,
    version: str,
    model: bytes,
    runtime: Runtime,
    declared: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    changes: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
) -> ModelVersion:
    """The model's manifest: `declared` are inputs and outputs, `changes` those of the model and of its one variant."""
    variant = Variant(
        name="cpu",
        runtime=runtime,
        hardware=Hardware(),
        files=(File(path=f"model.{runtime}", role="weights", digest=digest_of(model), size_bytes=len(model)),),
        inputs=declared[0],
        outputs=declared[1],
    )
    digits = DataSet(name="scikit-learn digits", digest=digest_of(digits_models.images().tobytes()), rows=1797)
    found = ModelVersion(
        name=name,
        version=version,
        training_data=digits,
        metrics={"accuracy": 0.9},
        framework=Framework(name="scikit-learn", version="1"),
        variants=(_changed(variant, changes[1]),),
    )
    changed: ModelVersion = _changed(found, changes[0])
    return changed


def sealed(
    release: Release,
    models: tuple[ModelVersion, ...],
    blobs: dict[str, bytes],
    key: PrivateKey = PUBLISHER,
    model_key: PrivateKey | None = None,
) -> Published:
    """Manifests signed as they are."""
    payload = strict_json.encode(release)
    envelopes: dict[str, bytes] = {digest_of(payload): sign(payload, RELEASE_TYPE, [key])}
    for model in models:
        model_payload = strict_json.encode(model)
        envelopes[digest_of(model_payload)] = sign(model_payload, MODEL_TYPE, [model_key or key])
    return Published(reference_to(release, digest_of(payload)), release, models, envelopes, blobs)


def golden_cases(model: bytes, runtime: Runtime = "onnx") -> list[dict[str, Any]]:
    """Real images on which the model answers finite numbers, with its answers."""
    session = runtime_named(runtime).load(model, threads=1)
    cases = []
    for image in digits_models.inked_images()[:_GOLDEN_IMAGES]:
        answer = session.run({"image": image.reshape(1, -1)}, ("probabilities",))["probabilities"]
        cases.append({"inputs": [tensor("image", image.reshape(1, -1))], "outputs": [tensor("probabilities", answer)]})
    return cases


def tensor(name: str, values: npt.NDArray[np.float32]) -> dict[str, Any]:
    """An FP32 tensor in the protocol's JSON."""
    return {
        "name": name,
        "datatype": "FP32",
        "shape": list(values.shape),
        "data": [float(value) for value in values.ravel()],
    }


def _cases(golden: Sequence[dict[str, Any]] | bytes) -> bytes:
    return golden if isinstance(golden, bytes) else json.dumps({"cases": list(golden)}).encode()


def _changed(value: Any, changes: Mapping[str, Any] | None) -> Any:
    return msgspec.structs.replace(value, **(changes or {}))
