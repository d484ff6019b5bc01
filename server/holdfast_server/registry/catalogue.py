"""What is published, for people and devices: lists, one release in full, two compared, and the signed bytes themselves."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, select

from holdfast_server.registry import manifests
from holdfast_server.rollouts import storage
from holdfast_server.store.schema import environments, models, releases
from holdfast_shared.errors import Missing
from holdfast_shared.semver import Version
from holdfast_shared.wire.release import Release

# A manifest has at most a few thousand fields; more differences than this nobody reads.
DIFFERENCES_MAX: Final = 1000


def listed(connection: Connection, pipeline: str | None) -> dict[str, Any]:
    """`GET /releases`: by pipeline, the newest version first."""
    query = select(
        releases.c.pipeline,
        releases.c.version,
        releases.c.digest,
        releases.c.published_at,
        releases.c.publisher,
    )
    if pipeline is not None:
        query = query.where(releases.c.pipeline == pipeline)
    found: list[dict[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    found.sort(key=lambda one: Version(one["version"]), reverse=True)
    found.sort(key=lambda one: one["pipeline"])
    return {"releases": found}


def shown(connection: Connection, pipeline: str, version: str) -> dict[str, Any]:
    """`GET /releases/<pipeline>/<version>`: both manifests, as they were signed. Raises Missing."""
    ref, envelope = storage.release(connection, pipeline, version, field="version")
    row = connection.execute(
        select(releases.c.published_at, releases.c.publisher).where(releases.c.digest == ref.digest)
    ).one()
    release = manifests.stored_release(envelope)
    return {
        "pipeline": pipeline,
        "version": ref.version,
        "digest": ref.digest,
        "published_at": row.published_at,
        "publisher": row.publisher,
        "manifest": msgspec.to_builtins(release),
        "models": _models(connection, release),
    }


def compared(connection: Connection, pipeline: str, before: str, after: str) -> dict[str, Any]:
    """`GET /releases/<pipeline>/compare`: field by field, both manifests. Raises Missing."""
    sides = [_fields(shown(connection, pipeline, version)) for version in (before, after)]
    paths = sorted(sides[0].keys() | sides[1].keys())
    differences = [
        {"field": path, "from": sides[0].get(path), "to": sides[1].get(path)}
        for path in paths
        if sides[0].get(path) != sides[1].get(path)
    ]
    return {"pipeline": pipeline, "from": before, "to": after, "differences": differences[:DIFFERENCES_MAX]}


def listed_environments(connection: Connection) -> dict[str, Any]:
    """`GET /environments`: by name, the newest version first."""
    query = select(
        environments.c.name,
        environments.c.version,
        environments.c.digest,
        environments.c.published_at,
        environments.c.publisher,
    )
    found: list[dict[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    found.sort(key=lambda one: Version(one["version"]), reverse=True)
    found.sort(key=lambda one: one["name"])
    return {"environments": found}


def shown_environment(connection: Connection, name: str, version: str) -> dict[str, Any]:
    """`GET /environments/<name>/<version>`: as it was signed, and the releases that name it. Raises Missing."""
    row = environment_named(connection, name, version, field="version")
    named = [
        {"pipeline": release.pipeline, "version": release.version}
        for envelope in connection.execute(select(releases.c.envelope).order_by(releases.c.published_at)).scalars()
        if row.digest in (release := manifests.stored_release(bytes(envelope))).environments
    ]
    return {
        "name": row.name,
        "version": row.version,
        "digest": row.digest,
        "published_at": row.published_at,
        "publisher": row.publisher,
        "manifest": msgspec.to_builtins(manifests.stored_environment(bytes(row.envelope))),
        "releases": named,
    }


def environment_named(connection: Connection, name: str, version: str, *, field: str) -> Row[Any]:
    """By its version's precedence. Raises Missing with what there is."""
    found = connection.execute(
        select(environments).where(
            environments.c.name == name,
            environments.c.precedence == version.partition("+")[0],
        )
    ).one_or_none()
    if found is None:
        raise Missing(
            f"environment {name} {version} is not published",
            field=field,
            next_step="look at: holdfast environment list",
        )
    return found


def envelope_of(connection: Connection, digest: str) -> bytes:
    """The signed bytes of the release, model or environment with that digest. Raises Missing."""
    for table in (releases, models, environments):
        found = connection.execute(select(table.c.envelope).where(table.c.digest == digest)).scalar_one_or_none()
        if found is not None:
            return bytes(found)
    raise Missing(
        f"no release, model or environment with the digest {digest} is published",
        field="digest",
        next_step="look at: holdfast release list",
    )


def _models(connection: Connection, release: Release) -> list[dict[str, Any]]:
    rows = {
        row.digest: row
        for row in connection.execute(
            select(models).where(models.c.digest.in_([stage.model.digest for stage in release.stages]))
        )
    }
    return [
        {
            "digest": row.digest,
            "published_at": row.published_at,
            "publisher": row.publisher,
            "manifest": msgspec.to_builtins(manifests.stored_model(bytes(row.envelope))),
        }
        for stage in release.stages
        if (row := rows.get(stage.model.digest)) is not None
    ]


def _fields(release: dict[str, Any]) -> dict[str, Any]:
    """Path → value of every leaf of the release's manifest, and of its models' under `models.<name>`."""
    found: dict[str, Any] = {"digest": release["digest"], "publisher": release["publisher"]}
    _flatten(release["manifest"], "", found)
    for model in release["models"]:
        _flatten(model["manifest"], f"models.{model['manifest']['name']}", found)
    return found


def _flatten(value: Any, path: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _flatten(inner, f"{path}.{name}" if path else str(name), found)
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            _flatten(inner, f"{path}[{index}]", found)
    else:
        found[path] = value
