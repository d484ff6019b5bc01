"""What is published: models, releases and their blobs. Write-once and content-addressed; what is refused changes nothing.

A manifest is registered in one transaction, and only when every blob it names is here and was looked at. Until then the sender
is told what is missing, and only that may be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Table, insert, select

from holdfast_server import clock
from holdfast_server.audit import decisions
from holdfast_server.core.rollout import Moment
from holdfast_server.refusals import TooLarge
from holdfast_server.registry import contents, manifests, uploads, validation, weights
from holdfast_server.registry.blobs import BlobStore
from holdfast_server.registry.manifests import Signed
from holdfast_server.registry.weights import Declared
from holdfast_server.store import changes
from holdfast_server.store.database import Database
from holdfast_server.store.schema import environments, models, release_blobs, releases
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import Conflict, Malformed, Missing
from holdfast_shared.identifiers import Digest
from holdfast_shared.semver import Version
from holdfast_shared.wire.environment import wheels_of
from holdfast_shared.wire.release import ModelVersion, Release, blobs_of


class Published(NamedTuple):
    """`missing`: digest → size of the blobs to send before it can be registered."""

    result: Literal["made", "unchanged", "missing"]
    digest: Digest
    missing: Mapping[str, int]


class _Entry(NamedTuple):
    """A manifest on its way into its table."""

    table: Table
    what: str
    name_column: str
    name: str
    version: str
    signed: Signed[Any]
    blobs: Mapping[str, int]
    weights: Mapping[str, Declared]


class Registry:
    """Safe to share between threads."""

    def __init__(
        self,
        *,
        database: Database,
        authorities: Authorities,
        blobs: BlobStore,
        now: Callable[[], Moment] = clock.moment,
    ) -> None:
        self._database = database
        self._authorities = authorities
        self._now = now
        self.blobs = blobs

    def publish_model(self, envelope: bytes) -> Published:
        """May be repeated. Raises HoldfastError, having changed nothing."""
        signed = manifests.read_model(envelope, self._authorities)
        model = signed.manifest
        validation.check_model(model)
        contents.check_sizes(model)
        wanted = {file.digest: file.size_bytes for variant in model.variants for file in variant.files}
        contents.forget_damaged(self.blobs, wanted)
        contents.check_weights(self.blobs, model)
        return self._publish(
            _Entry(models, "model", "name", model.name, model.version, signed, wanted, weights.declared_in(model))
        )

    def publish_release(self, envelope: bytes) -> Published:
        """May be repeated. Raises HoldfastError, having changed nothing."""
        signed = manifests.read_release(envelope, self._authorities)
        release = signed.manifest
        with self._database.read() as connection:
            known = _models_of(connection, release)
            named = _environments_of(connection, release)
        plan = validation.check_release(release, known, named)
        contents.check_self_test_size(release)
        used = tuple(known[stage.model.digest] for stage in release.stages)
        wanted = blobs_of(release, used)
        contents.forget_damaged(self.blobs, wanted)
        contents.check_self_test(self.blobs, release, plan)
        declared = {digest: one for model in used for digest, one in weights.declared_in(model).items()}
        return self._publish(
            _Entry(releases, "release", "pipeline", release.pipeline, release.version, signed, wanted, declared)
        )

    def publish_environment(self, envelope: bytes) -> Published:
        """May be repeated. Raises HoldfastError, having changed nothing."""
        signed = manifests.read_environment(envelope, self._authorities)
        environment = signed.manifest
        validation.check_environment(environment)
        wanted = wheels_of(environment)
        contents.forget_damaged(self.blobs, wanted)
        contents.check_wheels(self.blobs, environment)
        return self._publish(
            _Entry(environments, "environment", "name", environment.name, environment.version, signed, wanted, {})
        )

    def expected_size(self, digest: str) -> int | None:
        """How many bytes may be sent as that blob; None: none at all."""
        with self._database.read() as connection:
            found = uploads.expected(connection, digest, self._now().at)
        return found.size_bytes if found is not None else None

    def receive(self, digest: str, size_bytes: int | None, pieces: Iterable[bytes]) -> bool:
        """Take in a blob that a manifest asked for; False: it was here already, and nothing was read.

        `size_bytes`: what the sender announced. Raises Missing when nobody asked, Malformed when it is not that blob, or not
        what its manifest declares, TooLarge, NoSpace; then nothing is kept.
        """
        with self._database.read() as connection:
            wanted = uploads.expected(connection, digest, self._now().at)
        if self.blobs.has(digest):
            return False
        if wanted is None:
            raise Missing(
                f"no manifest asked for {digest}",
                field="digest",
                next_step="publish the manifest that names it first; `holdfast publish` does both",
            )
        _check_announced(size_bytes, wanted.size_bytes)
        received = self.blobs.receive(digest, wanted.size_bytes, pieces)
        try:
            if wanted.weights is not None:
                weights.check(received, wanted.weights)
        except Malformed:
            self.blobs.drop(received)
            raise
        self.blobs.keep(received, digest)
        return True

    def sweep(self) -> None:
        """Forget what was begun to be published and never finished. May be repeated."""
        now = self._now().at
        with self._database.read() as connection:
            if not uploads.expired(connection, now):
                return
        with self._database.write() as connection:
            old = uploads.expired(connection, now)
            named = _named_blobs(connection)
            uploads.forget(connection, old)
            for digest in old:
                if digest not in named:
                    self.blobs.remove(digest)

    def _publish(self, entry: _Entry) -> Published:
        self.sweep()
        digest = entry.signed.digest
        with self._database.read() as connection:
            known = _is_registered(connection, entry)
            if known and not contents.absent(self.blobs, entry.blobs):
                return Published("unchanged", digest, {})
        with self._database.write() as connection:
            now = self._now()
            known = _is_registered(connection, entry)
            missing = contents.absent(self.blobs, entry.blobs)
            if missing:
                uploads.expect(connection, missing, entry.weights, now.at)
                return Published("missing", digest, missing)
            if not known:
                _register(connection, entry, now)
            uploads.fulfilled(connection, entry.blobs)
        return Published("unchanged" if known else "made", digest, {})


def _check_announced(announced: int | None, wanted: int) -> None:
    if announced is None:
        raise Malformed(
            "the request does not say how long its body is",
            field="Content-Length",
            next_step="send the file with its length",
        )
    if announced > wanted:
        raise TooLarge(
            f"{wanted} bytes are expected, {announced} were announced",
            field="size_bytes",
            next_step="send exactly the file that the manifest names",
        )
    if announced < wanted:
        raise Malformed(
            f"{wanted} bytes are expected, {announced} were announced",
            field="size_bytes",
            next_step="send exactly the file that the manifest names",
        )


def _is_registered(connection: Connection, entry: _Entry) -> bool:
    """Whether exactly this is. Raises Conflict when its version is taken by something else."""
    table = entry.table
    found = connection.execute(
        select(table.c.digest, table.c.version).where(
            table.c[entry.name_column] == entry.name,
            table.c.precedence == Version(entry.version).precedence,
        )
    ).one_or_none()
    if found is not None and found.digest != entry.signed.digest:
        raise Conflict(
            f"{entry.what} {entry.name} {found.version} is published with {found.digest}; "
            f"this one is {entry.signed.digest}",
            field="version",
            next_step="publish the new content under a new version; a published one never changes",
        )
    return found is not None


def _register(connection: Connection, entry: _Entry, now: Moment) -> None:
    values = {
        "digest": entry.signed.digest,
        entry.name_column: entry.name,
        "version": entry.version,
        "precedence": Version(entry.version).precedence,
        "publisher": entry.signed.publisher,
        "published_at": now.at,
        "envelope": entry.signed.envelope,
    }
    connection.execute(insert(entry.table).values(**values))
    if entry.table is releases:
        for digest, size_bytes in entry.blobs.items():
            connection.execute(
                insert(release_blobs).values(
                    release_digest=entry.signed.digest, blob_digest=digest, size_bytes=size_bytes
                )
            )
    decisions.record(
        connection,
        moment=now,
        kind=f"{entry.what} published",
        subject=f"{entry.name} {entry.version}",
        cause=f"signed by {entry.signed.publisher}",
        evidence={"digest": entry.signed.digest, "blobs": len(entry.blobs), "size_bytes": sum(entry.blobs.values())},
    )
    changes.mark(connection, "releases")


def _models_of(connection: Connection, release: Release) -> dict[str, ModelVersion]:
    digests = [stage.model.digest for stage in release.stages]
    rows = connection.execute(select(models.c.digest, models.c.envelope).where(models.c.digest.in_(digests)))
    return {row.digest: manifests.stored_model(bytes(row.envelope)) for row in rows}


def _environments_of(connection: Connection, release: Release) -> set[str]:
    """Those of the release's environments that are published."""
    query = select(environments.c.digest).where(environments.c.digest.in_(release.environments))
    return set(connection.execute(query).scalars())


def _named_blobs(connection: Connection) -> set[str]:
    """Every blob that a registered manifest names. Reads all models and environments: only when something is to be deleted."""
    named = set(connection.execute(select(release_blobs.c.blob_digest).distinct()).scalars())
    for envelope in connection.execute(select(models.c.envelope)).scalars():
        model = manifests.stored_model(bytes(envelope))
        named.update(file.digest for variant in model.variants for file in variant.files)
    for envelope in connection.execute(select(environments.c.envelope)).scalars():
        named.update(wheels_of(manifests.stored_environment(bytes(envelope))))
    return named
