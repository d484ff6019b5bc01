"""The manifests of one target: from this disk or from the server, and believed only once a publisher's signature is verified.

Verified in this order: the payload is what the digest says, a publisher that may publish it signed it, then it is parsed, then it
is what was asked for. Bytes that fail never leave this file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch.blob import refused
from holdfast_agent.fetch.line import Closed, Line, Restraint
from holdfast_agent.fetch.outcome import Failed
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import HoldfastError
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT, KeyId, digest_of
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire import environment as environment_wire
from holdfast_shared.wire.environment import Environment
from holdfast_shared.wire.release import ENVELOPE_BYTES_MAX, MODEL_TYPE, RELEASE_TYPE, ModelVersion, Release

D = TypeVar("D", Release, ModelVersion, Environment)

REQUEST_S: Final = 60.0
_OK: Final = 200

log: Final = logging.getLogger(__name__)


class Order(NamedTuple):
    """What was asked for."""

    pipeline: str
    version: str
    digest: str
    environment: str = SYSTEM_ENVIRONMENT


class Manifests(NamedTuple):
    """Verified. `envelopes`: by digest, the release last, in the order in which they are put on disk.

    `environment`: None is the device's own.
    """

    release: Release
    models: tuple[ModelVersion, ...]
    envelopes: dict[str, bytes]
    environment: Environment | None = None


class Source(NamedTuple):
    """Where manifests come from, and who may have signed them. `from_disk`: nothing may be asked of the server."""

    server: str
    folder: StateFolder
    authorities: Authorities
    restraints: Sequence[Restraint] = ()
    from_disk: bool = False

    @property
    def line(self) -> Line:
        return Line(self.server, (Closed(),) if self.from_disk else self.restraints)


def obtain(source: Source, order: Order, deadline: Deadline) -> Manifests:
    """Raises Failed, Untrusted, Malformed, Unreachable or TooSlow."""
    publishers = source.authorities.publisher_keys(order.pipeline)
    envelope, release = _one(source, order.digest, RELEASE_TYPE, Release, publishers, deadline)
    _check_same("pipeline", order.pipeline, release.pipeline)
    _check_same("version", order.version, release.version)
    models, envelopes = [], {}
    for index, stage in enumerate(release.stages):
        named = stage.model
        signers = source.authorities.publisher_keys(None)
        envelopes[named.digest], model = _one(source, named.digest, MODEL_TYPE, ModelVersion, signers, deadline)
        _check_same(f"stages[{index}].model.name", named.name, model.name)
        _check_same(f"stages[{index}].model.version", named.version, model.version)
        models.append(model)
    environment = None
    if order.environment != SYSTEM_ENVIRONMENT:
        wanted, signers = order.environment, source.authorities.publisher_keys(None)
        found = _one(source, wanted, environment_wire.TYPE, Environment, signers, deadline)
        envelopes[wanted], environment = found
    return Manifests(release, tuple(models), envelopes | {order.digest: envelope}, environment)


def _one(
    source: Source, digest: str, document_type: str, kind: type[D], keys: Mapping[KeyId, PublicKey], deadline: Deadline
) -> tuple[bytes, D]:
    for envelope in _on_disk(source.folder, digest):
        try:
            return envelope, _verified(envelope, digest, document_type, kind, keys)
        except (
            HoldfastError
        ) as error:  # damaged, or its publisher may no longer publish: the server may have a better one
            log.warning("the manifest on disk is passed over: %s", error)
    envelope = _from_server(source.line, digest, deadline)
    return envelope, _verified(envelope, digest, document_type, kind, keys)


def _verified(envelope: bytes, digest: str, document_type: str, kind: type[D], keys: Mapping[KeyId, PublicKey]) -> D:
    payload = signing.unverified_payload(envelope, document_type, size_bytes_max=ENVELOPE_BYTES_MAX)
    if digest_of(payload) != digest:
        raise Failed(FailureCode.FETCH_DAMAGED, f"the manifest has digest {digest_of(payload)}, not {digest}")
    payload = signing.verify(envelope, document_type, keys, size_bytes_max=ENVELOPE_BYTES_MAX).payload
    return strict_json.decode(payload, kind, what=f"manifest {digest}", size_bytes_max=ENVELOPE_BYTES_MAX)


def _on_disk(folder: StateFolder, digest: str) -> Iterator[bytes]:
    for path in (folder.manifest(digest), folder.partial_manifest(digest)):
        try:
            with path.open("rb") as stream:
                yield stream.read(ENVELOPE_BYTES_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("cannot read %s: %s", path, error)


def _from_server(line: Line, digest: str, deadline: Deadline) -> bytes:
    left_s = min(REQUEST_S, deadline.left_s())
    with line.get(f"/api/v1/manifests/{digest}", deadline_s=left_s) as answer:
        if answer.status != _OK:
            raise refused(answer, f"manifest {digest}")
        return answer.body(ENVELOPE_BYTES_MAX)


def _check_same(field: str, asked: str, found: str) -> None:
    if asked != found:
        raise Failed(FailureCode.FETCH_DAMAGED, f"asked for {asked}, the signed manifest says {found}", field=field)
