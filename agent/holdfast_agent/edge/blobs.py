"""What lies under `blobs/`, `manifests/` and `environments/`: whether a release or an environment is all there, and what nothing
names any more.

- A manifest on disk means that everything it names is there: fetch writes manifests last, garbage loses them first.
- Here a manifest is trusted by its digest, which the record names: who signed it was asked when it came.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from holdfast_agent.edge import environments
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.locks import lock_within
from holdfast_agent.edge.reading import MISSING, hash_of_stream
from holdfast_shared import durable, signing, strict_json, variants
from holdfast_shared.errors import Damaged, HoldfastError
from holdfast_shared.identifiers import digest_of, hex_of
from holdfast_shared.variants import CHOICE_BYTES_MAX, Choice
from holdfast_shared.wire import environment as environment_wire
from holdfast_shared.wire.environment import Environment, wheels_of
from holdfast_shared.wire.release import (
    ENVELOPE_BYTES_MAX,
    MODEL_TYPE,
    RELEASE_TYPE,
    ModelVersion,
    Release,
    blobs_of,
)

D = TypeVar("D", Release, ModelVersion, Environment)


log: Final = logging.getLogger(__name__)


def release_of(folder: StateFolder, digest: str) -> Release | None:
    """The release whose manifest has that digest; None when it is not there or does not verify."""
    return _document(folder.manifest(digest), digest, RELEASE_TYPE, Release)


def environment_of(folder: StateFolder, digest: str) -> Environment | None:
    """The environment whose manifest has that digest; None when it is not there or does not verify."""
    return _document(folder.manifest(digest), digest, environment_wire.TYPE, Environment)


def models_of(folder: StateFolder, release: Release) -> list[ModelVersion] | None:
    """The models of the release's stages, in order; None when one is not there or does not verify."""
    found = [_document(folder.manifest(d), d, MODEL_TYPE, ModelVersion) for d in _model_digests(release)]
    models = [model for model in found if model is not None]
    return models if len(models) == len(found) else None


def damaged(folder: StateFolder, digest: str, *, read: Callable[[int], None] | None = None) -> list[str]:
    """The digests of what the release or environment needs and is missing or does not verify; empty: it may serve.

    Reads all its bytes. `read` is called after each piece with its length, and may wait or raise; with it, the bytes come from
    the disk itself. Raises OSError when something is there and cannot be read: too many open files are no damage.
    """
    release = _readable(folder.manifest(digest), digest, RELEASE_TYPE, Release)
    if release is None:
        environment = _readable(folder.manifest(digest), digest, environment_wire.TYPE, Environment)
        return [digest] if environment is None else _damaged_of_environment(folder, digest, environment, read)
    found = {d: _readable(folder.manifest(d), d, MODEL_TYPE, ModelVersion) for d in _model_digests(release)}
    bad = [one for one, model in found.items() if model is None]
    models = [found[one] for one in _model_digests(release)]
    needed = _needed(folder, digest, release, models)
    return bad + [one for one, size in needed.items() if not _is_whole(folder, one, size, read)]


def _damaged_of_environment(
    folder: StateFolder, digest: str, environment: Environment, read: Callable[[int], None] | None
) -> list[str]:
    """Its wheels, so that it can be built again without a network, and itself as it was built."""
    bad = [one for one, size in wheels_of(environment).items() if not _is_whole(folder, one, size, read)]
    why = environments.damaged(folder.environment(digest), read=read)
    if why:
        log.error("environment %s: %s", digest, why)
        bad.append(digest)
    return bad


def write_choice(
    folder: StateFolder, held: tuple[str, str], models: Sequence[ModelVersion], chosen: tuple[str, ...]
) -> None:
    """Where there is a choice, write down which variants are fetched for (release, environment). Before its manifest is named."""
    if any(len(model.variants) > 1 for model in models):
        durable.write_file(folder.choice(*held), strict_json.encode(Choice(variants=chosen)))


def needed_blobs(folder: StateFolder, digest: str, release: Release, models: Sequence[ModelVersion]) -> dict[str, int]:
    """Digest → size of what the release needs on this device: of the chosen variants alone. Raises OSError."""
    return _needed(folder, digest, release, models)


def blob_verifies(folder: StateFolder, digest: str, size_bytes: int) -> bool:
    """Whether the blob is there, of that length and hash; what cannot be read is as good as not there."""
    try:
        return _is_whole(folder, digest, size_bytes, None)
    except OSError:
        return False


def _is_whole(folder: StateFolder, digest: str, size_bytes: int, read: Callable[[int], None] | None) -> bool:
    try:
        stream = folder.blob(digest).open("rb")
    except MISSING:
        return False
    with stream:
        if os.fstat(stream.fileno()).st_size != size_bytes:
            return False
        return hash_of_stream(stream, read=read) == hex_of(digest)


def collect_garbage(folder: StateFolder, keep: Collection[str]) -> int:
    """Delete manifests, blobs, environments and partial downloads that nothing in `keep` names; how many files went.

    `keep` holds every release and environment that a slot names or that is being fetched. Deletes nothing while a fetch is at
    work, nor while a kept manifest is there but cannot be read: then nobody knows what it names. May be repeated.
    """
    with exclusive(folder, wait_s=0) as held:
        if not held:
            return 0
        try:
            named = _named_by(folder, keep)
        except Damaged as error:
            log.warning("nothing is deleted: %s", error)
            return 0
        # A release before its models, those before their blobs: killed in between, no manifest is left without what it names.
        unnamed = [path for path in _files(folder.manifests) if path.name not in named.manifests]
        unnamed.sort(
            key=lambda path: _document(path, f"sha256:{path.name}", RELEASE_TYPE, Release) is None
        )  # and choices
        needless = [path for path in _files(folder.blobs) if path.name not in named.blobs]
        needless += [path for path in _files(folder.partial) if not _is_awaited(path, named)]
        durable.remove_leftovers(folder.environments)
        built = [path for path in _folders(folder.environments) if path.name not in named.manifests]
        if (unnamed or built or needless) and folder.manifests.is_dir():
            # Whoever was killed may have left a manifest that is only nearly gone.
            durable.sync_folder(folder.manifests)
        for path in unnamed:
            durable.remove(path)
        for path in built:
            durable.remove_folder(path)
        for path in needless:
            durable.remove(path)
        return len(unnamed) + len(built) + len(needless)


@contextlib.contextmanager
def exclusive(folder: StateFolder, *, wait_s: float) -> Iterator[bool]:
    """Be the only one who adds or deletes blobs and manifests; False when another still is after `wait_s`.

    The kernel lets go of it when its holder dies, however it dies.
    """
    durable.make_folder(folder.root)
    descriptor = durable.open_lock(folder.fetch_lock)
    try:
        yield lock_within(descriptor, wait_s)
    finally:
        os.close(descriptor)


class _Named(NamedTuple):
    """File names that are kept."""

    manifests: set[str]
    blobs: set[str]


def _named_by(folder: StateFolder, keep: Iterable[str]) -> _Named:
    named = _Named(set(), set())
    for digest in keep:
        try:
            release = _kept(folder, digest, RELEASE_TYPE, Release)
        except Damaged:  # or an environment's
            environment = _kept(folder, digest, environment_wire.TYPE, Environment)
            assert environment is not None
            named.manifests.add(hex_of(digest))
            named.blobs.update(map(hex_of, wheels_of(environment)))
            continue
        if release is None:
            continue
        models = [_kept(folder, model, MODEL_TYPE, ModelVersion) for model in _model_digests(release)]
        named.manifests.update(map(hex_of, (digest, *_model_digests(release))))
        named.manifests.update(path.name for path in folder.choices(digest))
        known = tuple(model for model in models if model is not None)
        named.blobs.update(map(hex_of, blobs_of(release, known)))
    return named


def _needed(
    folder: StateFolder, digest: str, release: Release, models: Sequence[ModelVersion | None]
) -> dict[str, int]:
    """Of each model that is there: the variants chosen for any environment; all of them where none was to be chosen."""
    chosen = [_choice(path) for path in folder.choices(digest)]
    needed = blobs_of(release, ())
    for index, model in enumerate(models):
        names: list[tuple[str, ...] | None] = [one[index : index + 1] or None if one else None for one in chosen]
        for name in names or [None]:
            needed |= blobs_of(release, (model,), variants=name) if model is not None else {}
    return needed


def _choice(path: Path) -> tuple[str, ...] | None:
    """None when it is damaged: then everything is asked for, and fetched again."""
    try:
        with path.open("rb") as stream:
            return variants.decode(stream.read(CHOICE_BYTES_MAX + 1)).variants
    except (FileNotFoundError, HoldfastError):
        return None


def _kept(folder: StateFolder, digest: str, document_type: str, kind: type[D]) -> D | None:
    """The manifest, also of a release whose blobs are still coming; None when there is none. Raises Damaged."""
    there = [path for path in (folder.manifest(digest), folder.partial_manifest(digest)) if path.exists()]
    for path in there:
        found = _document(path, digest, document_type, kind)
        if found is not None:
            return found
    if there:
        raise Damaged(f"manifest {digest} is kept and does not verify", next_step="fetch it again")
    return None


def _is_awaited(path: Path, named: _Named) -> bool:
    name = path.name.partition(".")[0]
    return name in named.blobs or name.removeprefix("manifest-") in named.manifests


def _document(path: Path, digest: str, document_type: str, kind: type[D]) -> D | None:
    """The document in an envelope file whose payload has that digest; None, too, when the file cannot be read."""
    try:
        return _readable(path, digest, document_type, kind)
    except OSError:
        return None


def _readable(path: Path, digest: str, document_type: str, kind: type[D]) -> D | None:
    try:
        with path.open("rb") as stream:
            envelope = stream.read(ENVELOPE_BYTES_MAX + 1)
    except MISSING:
        return None
    try:
        payload = signing.unverified_payload(envelope, document_type, size_bytes_max=ENVELOPE_BYTES_MAX)
        if digest_of(payload) != digest:
            return None
        return strict_json.decode(payload, kind, what=f"manifest {digest}", size_bytes_max=ENVELOPE_BYTES_MAX)
    except HoldfastError:
        return None


def _model_digests(release: Release) -> list[str]:
    return [stage.model.digest for stage in release.stages]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
