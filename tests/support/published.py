"""Releases as a publisher signs them, and a device that is provisioned to trust that publisher."""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from holdfast_agent.edge import configuration
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable, signing, strict_json
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.release import (
    MODEL_TYPE,
    RELEASE_TYPE,
    Blob,
    DataSet,
    File,
    Framework,
    Hardware,
    ModelRef,
    ModelVersion,
    Release,
    SelfTest,
    Stage,
    Tensor,
    Trial,
    Variant,
)

MIRA, STRANGER = PrivateKey.generate(), PrivateKey.generate()
FACES_ONLY = PrivateKey.generate()


@dataclass(frozen=True, slots=True)
class Published:
    """A signed release: its manifests' envelopes and its blobs, each by digest."""

    release: Release
    digest: str
    manifests: Mapping[str, bytes]
    blobs: Mapping[str, bytes]

    @property
    def model_digest(self) -> str:
        return self.release.stages[0].model.digest

    @property
    def weights(self) -> str:
        """The digest of its largest blob."""
        return max(self.blobs, key=lambda digest: len(self.blobs[digest]))

    def install(self, folder: StateFolder) -> None:
        """Put all of it where a finished fetch leaves it."""
        for made in (folder.blobs, folder.manifests):
            durable.make_folder(made)
        for digest, content in self.blobs.items():
            durable.write_file(folder.blob(digest), content)
        for digest, envelope in self.manifests.items():
            durable.write_file(folder.manifest(digest), envelope)


@dataclass(frozen=True, slots=True)
class Making:
    """What a test wants otherwise: fields of the documents, who signs, and the weights."""

    release: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    variant: Mapping[str, Any] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=lambda: Hardware(architectures=(platform.machine(),)))
    signer: PrivateKey = MIRA
    model_signer: PrivateKey = MIRA
    size_bytes: int = 300_000


def publish(version: str = "1.0.0", making: Making | None = None) -> Published:
    """A release of `digits`; other versions have other weights and the same self-test."""
    making = making or Making()
    weights = random.Random(version).randbytes(making.size_bytes)
    cases = json.dumps({"cases": []}).encode()
    tensor = Tensor(name="image", datatype="FP32", shape=(-1, 64))
    variant = Variant(
        name="cpu",
        runtime="onnx",
        hardware=making.hardware,
        files=(File(path="model.onnx", role="weights", digest=digest_of(weights), size_bytes=len(weights)),),
        inputs=(tensor,),
        outputs=(Tensor(name="label", datatype="INT64", shape=(-1,)),),
    )
    model = ModelVersion(
        name="classifier",
        version=version,
        training_data=DataSet(name="digits", digest=digest_of(b"digits")),
        metrics={"accuracy": 0.9},
        framework=Framework(name="scikit-learn", version="1.5.0"),
        variants=(msgspec.structs.replace(variant, **making.variant),),
    )
    model_payload = strict_json.encode(msgspec.structs.replace(model, **making.model))
    release = Release(
        pipeline="digits",
        version=version,
        stages=(
            Stage(
                name="classify",
                model=ModelRef(name="classifier", version=version, digest=digest_of(model_payload)),
                inputs={"image": "request.image"},
            ),
        ),
        outputs={"label": "classify.label"},
        self_test=SelfTest(
            blob=Blob(digest=digest_of(cases), size_bytes=len(cases)), absolute_tolerance=0.1, relative_tolerance=0.1
        ),
        guardrails=(),
        trial=Trial(soak_s=1, requests_min=10),
    )
    release = msgspec.structs.replace(release, **making.release)
    payload = strict_json.encode(release)
    return Published(
        release,
        digest_of(payload),
        {
            digest_of(model_payload): signing.sign(model_payload, MODEL_TYPE, [making.model_signer]),
            digest_of(payload): signing.sign(payload, RELEASE_TYPE, [making.signer]),
        },
        {digest_of(weights): weights, digest_of(cases): cases},
    )


def authorities() -> Authorities:
    """Mira may publish anything; FACES_ONLY's holder another pipeline; STRANGER is unknown."""
    text = PrivateKey.generate().public.to_text()
    return Authorities(
        fleet="acme",
        version=1,
        publishers=(
            Publisher(name="mira", public_key=MIRA.public.to_text()),
            Publisher(name="faces", public_key=FACES_ONLY.public.to_text(), pipelines=("faces",)),
        ),
        directors=(Director(name="director", public_key=text, epoch=1),),
        enrolment=(Holder(name="otto", public_key=text),),
        operators=(),
        approvers=(),
    )


def provisioned(folder: Path, server: str) -> tuple[Path, StateFolder]:
    """A device's configuration file and state folder; it holds no key, which fetch does not need."""
    state, path = folder / "state", folder / "agent.toml"
    (folder / "authorities.json").write_bytes(strict_json.encode(authorities()))
    device = {"id": "camera-7", "fleet": "acme", "state": str(state), "key": "none", "membership": "none"}
    device["authorities"] = str(folder / "authorities.json")
    lines = ["[device]", *(f"{name} = {json.dumps(value)}" for name, value in device.items())]
    lines += ["[server]", f'url = "{server}"', "[broker]", 'url = "mqtt://127.0.0.1:1"']
    path.write_text("\n".join(lines))
    return path, configuration.load(path).folder
