"""Whether the bytes of blobs are what their manifests say: looked at on arrival, and again before a manifest is registered,
because the same bytes may have come under another manifest that said less of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from holdfast_server.registry import weights
from holdfast_server.registry.blobs import PIECE_BYTES, BlobStore
from holdfast_shared import golden_cases, wheel_file
from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import hex_of
from holdfast_shared.wire.environment import Environment, Wheel
from holdfast_shared.wire.release import ModelVersion, Release
from holdfast_shared.wiring import Plan

_SELF_TEST: Final = "self_test.blob"

log: Final = logging.getLogger(__name__)


def absent(blobs: BlobStore, wanted: Mapping[str, int]) -> dict[str, int]:
    """Those that are not here. Raises Malformed when one is here and has another size than the manifest says."""
    missing = {}
    for digest, size_bytes in wanted.items():
        if not blobs.has(digest):
            missing[digest] = size_bytes
            continue
        found = blobs.path_of(digest).stat().st_size
        if found != size_bytes:
            raise Malformed(
                f"{digest} has {found} bytes, not {size_bytes}",
                field="size_bytes",
                next_step="state the size of the file that was hashed",
            )
    return missing


def forget_damaged(blobs: BlobStore, wanted: Iterable[str]) -> None:
    """Delete those that are here and rotted: they are then absent, and whoever publishes them again sends them again.

    Devices refuse such bytes, so nobody could ever fetch them. Reads all of them.
    """
    for digest in wanted:
        if not blobs.has(digest):
            continue
        hasher = hashlib.sha256()
        with blobs.open(digest) as stream:
            while piece := stream.read(PIECE_BYTES):
                hasher.update(piece)
        if hasher.hexdigest() != hex_of(digest):
            log.error("blob %s is damaged: it is deleted, and asked for again", digest)
            blobs.remove(digest)


def check_sizes(model: ModelVersion) -> None:
    """Raises Malformed when one digest stands in the manifest with two sizes."""
    sizes: dict[str, int] = {}
    for v, variant in enumerate(model.variants):
        for f, file in enumerate(variant.files):
            if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
                raise Malformed(
                    f"{file.digest} stands there with {sizes[file.digest]} and {file.size_bytes} bytes",
                    field=f"variants[{v}].files[{f}].size_bytes",
                    next_step="state the size of the file that was hashed",
                )


def check_weights(blobs: BlobStore, model: ModelVersion) -> None:
    """Those that are here. Raises Malformed that names the file."""
    for digest, declared in weights.all_declared_in(model):
        if blobs.has(digest):
            weights.check(blobs.path_of(digest), declared)


def check_wheels(blobs: BlobStore, environment: Environment) -> None:
    """Those that are here. Raises Malformed that names the wheel: every device would refuse it."""
    for index, wheel in enumerate(environment.wheels):
        if not blobs.has(wheel.digest):
            continue
        try:
            facts = wheel_file.facts_of(blobs.path_of(wheel.digest), wheel.filename)
            _check_facts(environment, wheel, facts)
        except Malformed as error:
            raise Malformed(
                f"{wheel.filename} {error.message}",
                field=f"wheels[{index}]",
                next_step="build the wheel anew; `holdfast environment publish` checks all of this",
            ) from error


def _check_facts(environment: Environment, wheel: Wheel, facts: wheel_file.Facts) -> None:
    if facts.unpacked_bytes > wheel.unpacked_bytes:
        raise Malformed(f"unpacks to {facts.unpacked_bytes} bytes; {wheel.unpacked_bytes} are declared")
    worker = environment.worker
    if wheel.filename == worker.filename and facts.protocol != wheel_file.Protocol(worker.oldest, worker.newest):
        found = "none" if facts.protocol is None else f"{facts.protocol.oldest} to {facts.protocol.newest}"
        raise Malformed(f"speaks {found} of the worker protocol; {worker.oldest} to {worker.newest} are declared")


def check_self_test_size(release: Release) -> None:
    if release.self_test.blob.size_bytes > golden_cases.SIZE_BYTES_MAX:
        raise Malformed(
            f"a self-test has at most {golden_cases.SIZE_BYTES_MAX} bytes, this one {release.self_test.blob.size_bytes}",
            field=f"{_SELF_TEST}.size_bytes",
            next_step="choose fewer cases",
        )


def check_self_test(blobs: BlobStore, release: Release, plan: Plan) -> None:
    """If it is here: whether its cases ask and answer with the release's tensors. Raises Malformed.

    A case that cannot be asked would condemn a good release on every device.
    """
    if not blobs.has(release.self_test.blob.digest):
        return
    with blobs.open(release.self_test.blob.digest) as stream:
        faults = golden_cases.faults_in(stream.read(golden_cases.SIZE_BYTES_MAX + 1), plan.inputs, plan.outputs)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise Malformed(
            f"{faults[0]}{more}", field=_SELF_TEST, next_step="make the cases anew from the model's own answers"
        )
