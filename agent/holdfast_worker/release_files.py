"""The verified bytes of a release: from one digest down, each file read once, checked, and those very bytes used.

A closed world: the release's digest names its manifest, which names its models by digest, which name their files by digest
and length. Signatures were checked when the manifests were fetched; from then on a digest is enough, and a worker needs no
keys (cryptography would cost each worker 8 MB).
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from holdfast_shared import reference, strict_json, variants
from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT, digest_of, hex_of
from holdfast_shared.model_file import ROLES
from holdfast_shared.variants import Machine
from holdfast_shared.wire.release import ENVELOPE_BYTES_MAX, ModelVersion, Release, Stage, Variant
from holdfast_worker.failures import LoadCode, LoadRefused

T = TypeVar("T", Release, ModelVersion)

# What publish accepts. Larger, it would be read into memory for nothing.
CASES_BYTES_MAX: Final = 16 * 1024**2
_ENVELOPE_DEPTH_MAX: Final = 4
# What opening something says when no regular file of that name is there.
_NO_FILE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})


class _Envelope(msgspec.Struct, frozen=True):
    """What a digest can vouch for of a DSSE envelope."""

    payload: str


class StageFiles(NamedTuple):
    """`model` is the one file that the variant's runtime loads."""

    stage: Stage
    variant: Variant
    model: bytes


class ReleaseFiles(NamedTuple):
    release: Release
    digest: str
    stages: tuple[StageFiles, ...]
    cases: bytes
    reference: bytes | None = None


class Folders(NamedTuple):
    """Where manifests and blobs lie, each by the hex digits of its digest."""

    manifests: Path
    blobs: Path


def read(folders: Folders, digest: str, *, environment: str, machine: Machine) -> ReleaseFiles:
    """Everything that the release needs, verified. Raises LoadRefused."""
    release = _manifest(folders, digest, Release)
    _check_supported(release, environment)
    chosen: dict[int, str] = dict(enumerate(_choice(folders, digest, environment)))
    stages = tuple(
        _stage(folders, stage, chosen.get(index), f"stages[{index}]", machine)
        for index, stage in enumerate(release.stages)
    )
    cases = release.self_test.blob
    if cases.size_bytes > CASES_BYTES_MAX:
        raise LoadRefused(
            "not-supported", f"self_test.blob is {cases.size_bytes} bytes; at most {CASES_BYTES_MAX} are allowed"
        )
    golden = _blob(folders, cases.digest, cases.size_bytes, "self_test.blob")
    return ReleaseFiles(release, digest, stages, golden, _reference(folders, release))


def _reference(folders: Folders, release: Release) -> bytes | None:
    blob = release.reference
    if blob is None:
        return None
    if blob.size_bytes > reference.SIZE_BYTES_MAX:
        raise LoadRefused(
            "not-supported", f"reference is {blob.size_bytes} bytes; at most {reference.SIZE_BYTES_MAX} are allowed"
        )
    return _blob(folders, blob.digest, blob.size_bytes, "reference")


def _check_supported(release: Release, environment: str) -> None:
    if environment not in release.environments:
        raise LoadRefused(
            "not-supported",
            f"the release was validated in {', '.join(release.environments)}, not in the environment {environment}",
        )
    if environment != SYSTEM_ENVIRONMENT and Path(sys.prefix).name != hex_of(environment):
        raise LoadRefused("not-supported", f"this worker runs in {sys.prefix}, not in the environment {environment}")


def _stage(folders: Folders, stage: Stage, chosen: str | None, where: str, machine: Machine) -> StageFiles:
    model = _manifest(folders, stage.model.digest, ModelVersion)
    if (model.name, model.version) != (stage.model.name, stage.model.version):
        raise LoadRefused(
            "load-failed",
            f"{where}.model: the release names {stage.model.name} {stage.model.version},"
            f" the manifest of that digest is {model.name} {model.version}",
        )
    variant = _fitting(model, chosen, where, machine)
    loaded: list[bytes] = []
    roles = ROLES[variant.runtime]
    for file in variant.files:
        data = _blob(folders, file.digest, file.size_bytes, file.path)
        if file.role in roles:
            loaded.append(data)
    if len(loaded) != 1:
        raise LoadRefused(
            "load-failed",
            f"{where}: variant {variant.name} has {len(loaded)} files of role {' or '.join(roles)}, expected 1",
        )
    return StageFiles(stage, variant, loaded[0])


def _fitting(model: ModelVersion, chosen: str | None, where: str, machine: Machine) -> Variant:
    """The variant that was fetched; where none was chosen there is one, or all were fetched: the first that fits."""
    variant = variants.named(model, chosen) if chosen is not None else None
    if variant is not None and variant.runtime in machine.runtimes:
        return variant
    found = variants.choose(model, machine)
    if isinstance(found, Variant):
        return found
    raise LoadRefused("not-supported", f"{where}: {variants.none_fits(model, found).words}")


def _choice(folders: Folders, digest: str, environment: str) -> tuple[str, ...]:
    """What was fetched, by stage; nothing where there was no choice to make."""
    path = folders.manifests / variants.choice_name(digest, environment)
    try:
        path.lstat()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _unread("the choice of variants", error) from error
    raw = _bytes_of(path, "the choice of variants", lambda size: size <= variants.CHOICE_BYTES_MAX)
    try:
        return variants.decode(raw).variants
    except Malformed as error:
        raise LoadRefused("damaged-blob", str(error)) from error


def _manifest(folders: Folders, digest: str, kind: type[T]) -> T:
    what = f"manifest {digest[:19]}…"
    raw = _bytes_of(folders.manifests / hex_of(digest), what, lambda size: size <= ENVELOPE_BYTES_MAX)
    try:
        envelope = strict_json.decode(
            raw, _Envelope, what=what, size_bytes_max=ENVELOPE_BYTES_MAX, depth_max=_ENVELOPE_DEPTH_MAX
        )
        payload = base64.b64decode(envelope.payload, validate=True)
    except (Malformed, binascii.Error, ValueError) as error:
        raise LoadRefused("damaged-blob", f"{what} is not an envelope: {error}") from error
    if digest_of(payload) != digest:
        raise LoadRefused("damaged-blob", f"{what}: its payload's digest is {digest_of(payload)}")
    try:
        found = strict_json.decode(payload, kind, what=what, size_bytes_max=ENVELOPE_BYTES_MAX)
    except Malformed as error:
        raise LoadRefused("load-failed", str(error)) from error
    _check_critical(found, what)
    return found


def _check_critical(manifest: Any, what: str) -> None:
    unknown = sorted(set(manifest.critical) - set(manifest.__struct_fields__))
    if unknown:
        raise LoadRefused(
            "not-supported", f"{what} calls {', '.join(unknown)} critical, which this version does not know"
        )


def _blob(folders: Folders, digest: str, size_bytes: int, name: str) -> bytes:
    what = f"{name} ({digest[:19]}…)"
    data = _bytes_of(folders.blobs / hex_of(digest), what, lambda size: size == size_bytes)
    if digest_of(data) != digest:
        raise LoadRefused("damaged-blob", f"{what}: its bytes' digest is {digest_of(data)}")
    return data


def _bytes_of(path: Path, what: str, right_size: Callable[[int], bool]) -> bytes:
    """One read of one regular file. Its size is asked first, so that no wrong file fills the memory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not right_size(status.st_size):
                _wrong_length(what, status.st_size)
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size:  # one system call reads at most 2 GiB
                more = os.read(descriptor, status.st_size - len(data))
                if not more:
                    _wrong_length(what, len(data))
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unread(what, error) from error
    return data


def _unread(what: str, error: OSError) -> LoadRefused:
    """Nothing there, or no file: damage. Any other refusal of the system says nothing about the bytes."""
    code: LoadCode = "damaged-blob" if error.errno in _NO_FILE else "unreadable"
    return LoadRefused(code, f"{what} cannot be read: {error.strerror}")


def _wrong_length(what: str, size: int) -> NoReturn:
    raise LoadRefused("damaged-blob", f"{what} has the wrong length, {size} bytes")
