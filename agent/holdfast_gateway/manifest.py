"""What the gateway needs of manifests: a release's limits and how long its guardrails look back, an environment's settings.

A manifest is trusted by its digest, which the record or the agent named: the payload's SHA-256 is compared before it is
parsed. Signatures were checked when it was staged; so this process needs no cryptography.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from holdfast_agent.edge.reading import MISSING
from holdfast_shared import strict_json
from holdfast_shared.errors import Damaged, Malformed
from holdfast_shared.identifiers import digest_of, hex_of
from holdfast_shared.wire.environment import Environment, Settings
from holdfast_shared.wire.release import ENVELOPE_BYTES_MAX, Limits, ModelVersion, Release

# Of a release without guardrails: what the agent reports as "now".
WINDOW_S_DEFAULT: Final = 60
_ENVELOPE_DEPTH_MAX: Final = 4
D = TypeVar("D", Release, ModelVersion, Environment)


class _Envelope(msgspec.Struct, frozen=True):
    payload: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one release. `window_s` is its longest guardrail's; `file_bytes` are of its models' files, as far as they are known."""

    limits: Limits
    window_s: int
    file_bytes: int = 0


def read(path: Path, digest: str, pipeline: str) -> Facts:
    """The facts of the release with that digest. Raises Damaged when what lies there is not it, or OSError."""
    release = _document(path, digest, Release)
    if release.pipeline != pipeline:
        raise Damaged(f"its manifest is of pipeline {release.pipeline}, not of {pipeline}")
    longest = max((guardrail.window_s for guardrail in release.guardrails), default=WINDOW_S_DEFAULT)
    return Facts(limits=release.limits, window_s=longest, file_bytes=_file_bytes(path.parent, release))


def settings_of(path: Path, digest: str) -> Settings:
    """The settings of the environment with that digest. Raises as `read` does."""
    return _document(path, digest, Environment).settings


def _file_bytes(manifests: Path, release: Release) -> int:
    """The largest variant of each model. A model's manifest that cannot be read is its worker's to complain of."""
    total = 0
    for stage in release.stages:
        try:
            model = _document(manifests / hex_of(stage.model.digest), stage.model.digest, ModelVersion)
        except (Damaged, OSError):
            continue
        total += max(sum(file.size_bytes for file in variant.files) for variant in model.variants)
    return total


def _document(path: Path, digest: str, kind: type[D]) -> D:
    try:
        with path.open("rb") as stream:
            raw = stream.read(ENVELOPE_BYTES_MAX + 1)
    except MISSING as error:
        raise Damaged(f"its manifest cannot be read: {error}", next_step="fetch the release again") from error
    try:
        envelope = strict_json.decode(
            raw, _Envelope, what="manifest", size_bytes_max=ENVELOPE_BYTES_MAX, depth_max=_ENVELOPE_DEPTH_MAX
        )
        payload = base64.b64decode(envelope.payload, validate=True)
        if digest_of(payload) != digest:
            raise Damaged(f"its manifest has another digest than {digest}", next_step="fetch the release again")
        return strict_json.decode(payload, kind, what="manifest", size_bytes_max=ENVELOPE_BYTES_MAX)
    except (Malformed, binascii.Error) as error:
        raise Damaged(f"its manifest does not parse: {error}", next_step="fetch the release again") from error
