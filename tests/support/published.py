"""Releases whose weights are no model, for what only moves bytes, and a device provisioned to trust their publisher."""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_agent.edge import configuration
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import strict_json
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.release import Hardware, Trial
from support import installed_release
from support.installed_release import Published

MIRA, STRANGER = PrivateKey.generate(), PrivateKey.generate()
FACES_ONLY = PrivateKey.generate()


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
    weights: bytes = b""  # instead of random ones


def publish(version: str = "1.0.0", making: Making | None = None) -> Published:
    """A release of `digits`; other versions have other weights and the same self-test."""
    making = making or Making()
    return installed_release.publish(
        "digits",
        version,
        making.weights or random.Random(version).randbytes(making.size_bytes),
        golden=b'{"cases": []}',
        tolerance=0.1,
        trial=Trial(soak_s=1, requests_min=10),
        key=making.signer,
        model_key=making.model_signer,
        release_changes=making.release,
        model_changes=making.model,
        variant_changes={"hardware": making.hardware, **making.variant},
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
    device = {"id": "camera-7", "fleet": "acme", "state": str(state), "key": "/none", "membership": "/none"}
    device["authorities"] = str(folder / "authorities.json")
    lines = ["[device]", *(f"{name} = {json.dumps(value)}" for name, value in device.items())]
    lines += ["[server]", f'url = "{server}"', "[broker]", 'url = "mqtt://127.0.0.1:1"']
    path.write_text("\n".join(lines))
    return path, configuration.load(path).folder
