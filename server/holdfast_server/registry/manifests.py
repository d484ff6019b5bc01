"""Signed manifests as they come in: verified first, then parsed. What they must satisfy besides is in `validation.py`."""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import Malformed, Untrusted
from holdfast_shared.identifiers import Digest, KeyId, digest_of
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire import environment as environment_wire
from holdfast_shared.wire.environment import Environment
from holdfast_shared.wire.release import (
    ENVELOPE_BYTES_MAX,
    MODEL_TYPE,
    RELEASE_TYPE,
    ModelVersion,
    Release,
)

M = TypeVar("M", ModelVersion, Release, Environment)
# What each is, for a payload that says neither: `annotations` may nest, all else is flatter.
_MODEL: Final = "model"
_RELEASE: Final = "release"
_ENVIRONMENT: Final = "environment"


class Signed(NamedTuple, Generic[M]):
    """A manifest, the bytes it came in, and the name of a publisher who signed it and may."""

    manifest: M
    digest: Digest
    envelope: bytes
    publisher: str


def read_model(envelope: bytes, authorities: Authorities) -> Signed[ModelVersion]:
    """Raises Malformed or Untrusted."""
    verified = signing.verify(envelope, MODEL_TYPE, authorities.publisher_keys(None), size_bytes_max=ENVELOPE_BYTES_MAX)
    model = _parse(verified.payload, ModelVersion, _MODEL)
    signer = min(verified.signers)
    return Signed(model, digest_of(verified.payload), envelope, _name_of(signer, authorities))


def read_release(envelope: bytes, authorities: Authorities) -> Signed[Release]:
    """Raises Malformed, or Untrusted: also when the signer publishes, but not this pipeline."""
    verified = signing.verify(
        envelope, RELEASE_TYPE, authorities.publisher_keys(None), size_bytes_max=ENVELOPE_BYTES_MAX
    )
    release = _parse(verified.payload, Release, _RELEASE)
    allowed = verified.signers & authorities.publisher_keys(release.pipeline).keys()
    if not allowed:
        names = ", ".join(sorted(_name_of(key, authorities) for key in verified.signers))
        raise Untrusted(
            f"{names} may not publish the pipeline {release.pipeline}",
            field="signatures",
            next_step=f"sign it with the key of a publisher that authorities.json lists for {release.pipeline}",
        )
    return Signed(release, digest_of(verified.payload), envelope, _name_of(min(allowed), authorities))


def read_environment(envelope: bytes, authorities: Authorities) -> Signed[Environment]:
    """Raises Malformed or Untrusted."""
    verified = signing.verify(
        envelope, environment_wire.TYPE, authorities.publisher_keys(None), size_bytes_max=ENVELOPE_BYTES_MAX
    )
    environment = _parse(verified.payload, Environment, _ENVIRONMENT)
    return Signed(environment, digest_of(verified.payload), envelope, _name_of(min(verified.signers), authorities))


def stored_environment(envelope: bytes) -> Environment:
    """From bytes of our own database: verified when they were stored."""
    return strict_json.stored(_payload(envelope, environment_wire.TYPE), Environment)


def stored_model(envelope: bytes) -> ModelVersion:
    """From bytes of our own database: verified when they were stored."""
    return strict_json.stored(_payload(envelope, MODEL_TYPE), ModelVersion)


def stored_release(envelope: bytes) -> Release:
    """From bytes of our own database: verified when they were stored."""
    return strict_json.stored(_payload(envelope, RELEASE_TYPE), Release)


def _payload(envelope: bytes, kind: str) -> bytes:
    return signing.unverified_payload(envelope, kind, size_bytes_max=ENVELOPE_BYTES_MAX)


def _parse(payload: bytes, kind: type[M], what: str) -> M:
    try:
        return strict_json.decode(payload, kind, what=what, size_bytes_max=ENVELOPE_BYTES_MAX)
    except Malformed as error:
        if error.field:
            raise
        raise Malformed(error.message, field=what, next_step=error.next_step) from error


def _name_of(key_id: KeyId, authorities: Authorities) -> str:
    for publisher in authorities.publishers:
        if PublicKey.from_text(publisher.public_key).key_id == key_id:
            return publisher.name
    raise AssertionError("a verified signer is a publisher")
