"""Rollouts, rollbacks, base rules, condemnations and decisions in their tables: values in, values out.

A record is one JSON value of a core type; its state and pipeline stand beside it for queries.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Table, and_, delete, insert, select, update

from holdfast_server.core import rollback as rollback_rules
from holdfast_server.core.base_rules import BaseRule
from holdfast_server.core.rollback import Rollback
from holdfast_server.core.rollout import ACTIVE, Moment, Rollout, State
from holdfast_server.core.standing import Condemnation, Standing
from holdfast_server.store import schema
from holdfast_shared import requirement, strict_json
from holdfast_shared.errors import Missing
from holdfast_shared.identifiers import DIGEST_PATTERN, SYSTEM_ENVIRONMENT
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import Release

T = TypeVar("T")


def _text(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _value(text: str, kind: type[T]) -> T:
    """Our own words back: what we stored is well-formed, or this is a bug."""
    return strict_json.stored(text, kind)


# ---------------------------------------------------------------- what stands
def standing(connection: Connection, pipeline: str) -> Standing:
    """All that stands for one pipeline."""
    rules = connection.execute(
        select(schema.base_rules.c.rule)
        .where(schema.base_rules.c.pipeline == pipeline)
        .order_by(schema.base_rules.c.position)
    ).scalars()
    condemned = connection.execute(
        select(schema.condemnations.c.entry)
        .where(schema.condemnations.c.pipeline == pipeline)
        .order_by(schema.condemnations.c.id)
    ).scalars()
    return Standing(
        base=tuple(_value(rule, BaseRule) for rule in rules),
        condemned=tuple(_value(entry, Condemnation) for entry in condemned),
        rollouts=tuple(rollouts(connection, pipeline=pipeline, states=(State.PLANNED, *ACTIVE))),
    )


def save_standing(connection: Connection, pipeline: str, before: Standing, after: Standing, now: Moment) -> None:
    """Base rules and condemnations as they are after; rollouts are saved one by one."""
    if after.base != before.base:
        connection.execute(delete(schema.base_rules).where(schema.base_rules.c.pipeline == pipeline))
        for position, rule in enumerate(after.base):
            connection.execute(insert(schema.base_rules).values(pipeline=pipeline, position=position, rule=_text(rule)))
    for entry in after.condemned[len(before.condemned) :]:
        connection.execute(
            insert(schema.condemnations).values(
                pipeline=pipeline, entry=_text(entry), cause=entry.incident, created_at=now.at
            )
        )


def pipelines(connection: Connection) -> list[str]:
    """Every pipeline that something stands for."""
    found: set[str] = set()
    for table in (schema.base_rules, schema.condemnations, schema.rollouts):
        found.update(connection.execute(select(table.c.pipeline).distinct()).scalars())
    return sorted(found)


# ---------------------------------------------------------------- rollouts
def rollouts(
    connection: Connection, *, pipeline: str | None = None, states: tuple[State, ...] | None = None
) -> list[Rollout]:
    """The oldest first."""
    query = select(schema.rollouts.c.record).order_by(schema.rollouts.c.created_at, schema.rollouts.c.id)
    if pipeline is not None:
        query = query.where(schema.rollouts.c.pipeline == pipeline)
    if states is not None:
        query = query.where(schema.rollouts.c.state.in_(states))
    return [_value(record, Rollout) for record in connection.execute(query).scalars()]


def rollout(connection: Connection, rollout_id: str) -> Rollout:
    """Raises Missing."""
    return _value(_record(connection, schema.rollouts, rollout_id, "rollout"), Rollout)


def save_rollout(connection: Connection, record: Rollout) -> None:
    _save(connection, schema.rollouts, record.id, record.plan.pipeline, record.state, record, record.planned_at)


# ---------------------------------------------------------------- rollbacks
def rollbacks(connection: Connection, *, states: tuple[rollback_rules.State, ...] | None = None) -> list[Rollback]:
    """The oldest first."""
    query = select(schema.rollbacks.c.record).order_by(schema.rollbacks.c.created_at, schema.rollbacks.c.id)
    if states is not None:
        query = query.where(schema.rollbacks.c.state.in_(states))
    return [_value(record, Rollback) for record in connection.execute(query).scalars()]


def rollback(connection: Connection, rollback_id: str) -> Rollback:
    """Raises Missing."""
    return _value(_record(connection, schema.rollbacks, rollback_id, "rollback"), Rollback)


def save_rollback(connection: Connection, record: Rollback) -> None:
    _save(connection, schema.rollbacks, record.id, record.pipeline, record.state, record, record.requested_at)


def is_taken(connection: Connection, key: str) -> bool:
    """Whether a rollout or a rollback has that id."""
    return any(
        connection.execute(select(table.c.id).where(table.c.id == key)).first() is not None
        for table in (schema.rollouts, schema.rollbacks)
    )


def _record(connection: Connection, table: Table, key: str, what: str) -> str:
    found = connection.execute(select(table.c.record).where(table.c.id == key)).scalar_one_or_none()
    if found is None:
        raise Missing(f"there is no {what} {key}", field=what, next_step=f"look at: holdfast {what}s")
    return str(found)


def _save(
    connection: Connection, table: Table, key: str, pipeline: str, state: str, record: object, created_at: int
) -> None:
    values: dict[str, Any] = {"pipeline": pipeline, "state": str(state), "record": _text(record)}
    if not connection.execute(update(table).where(table.c.id == key).values(**values)).rowcount:
        connection.execute(insert(table).values(id=key, created_at=created_at, **values))


# ---------------------------------------------------------------- the registry
def release(connection: Connection, pipeline: str, version: str, *, field: str) -> tuple[ReleaseRef, bytes]:
    """A published release by its version's precedence, with its envelope. Raises Missing with what there is."""
    found = connection.execute(
        select(schema.releases.c.version, schema.releases.c.digest, schema.releases.c.envelope).where(
            schema.releases.c.pipeline == pipeline,
            schema.releases.c.precedence == version.partition("+")[0],
        )
    ).one_or_none()
    if found is None:
        raise Missing(
            f"{pipeline} {version} is not published",
            field=field,
            next_step=_published(connection, pipeline),
        )
    return ReleaseRef(version=found.version, digest=found.digest), bytes(found.envelope)


def check_requirements(connection: Connection, found: Release) -> None:
    """Raises Missing when nothing that is published meets what the release requires: no device could ever go forward."""
    for index, wanted in enumerate(found.requires):
        versions = connection.execute(
            select(schema.releases.c.version).where(schema.releases.c.pipeline == wanted.pipeline)
        ).scalars()
        if not any(requirement.meets(version, wanted) for version in versions):
            raise Missing(
                f"{found.pipeline} {found.version} requires {requirement.in_words(wanted)}; none such is published",
                field=f"requires[{index}]",
                next_step=_published(connection, wanted.pipeline),
            )


def environment(connection: Connection, named: str | None, *, field: str) -> str | None:
    """Its digest, or `system`, from how people name it. Raises Malformed, or Missing with what there is."""
    if named is None or named == SYSTEM_ENVIRONMENT:
        return named
    table = schema.environments
    name, _, version = named.partition("@")
    wanted = (
        table.c.digest == named
        if re.fullmatch(DIGEST_PATTERN, named)
        else and_(table.c.name == name, table.c.precedence == version.partition("+")[0])
    )
    found = connection.execute(select(table.c.digest).where(wanted)).scalar_one_or_none()
    if found is None:
        known = connection.execute(
            select(table.c.name, table.c.version).order_by(table.c.published_at.desc()).limit(_LISTED_MAX)
        )
        names = ", ".join(f"{row.name}@{row.version}" for row in known)
        raise Missing(
            f"no environment {named[:100]!r} is published",
            field=field,
            next_step=f"use {SYSTEM_ENVIRONMENT}, a digest" + (f", or one of: {names}" if names else ""),
        )
    return str(found)


# The newest are the likely ones; a registry holds hundreds.
_LISTED_MAX = 8


def _published(connection: Connection, pipeline: str) -> str:
    known = connection.execute(
        select(schema.releases.c.version)
        .where(schema.releases.c.pipeline == pipeline)
        .order_by(schema.releases.c.published_at.desc())
        .limit(_LISTED_MAX)
    ).scalars()
    versions = ", ".join(known)
    if versions:
        return f"publish it, or use one of: {versions}"
    names = ", ".join(connection.execute(select(schema.releases.c.pipeline).distinct().limit(_LISTED_MAX)).scalars())
    return f"no release of {pipeline} is published" + (f"; there is {names}" if names else ": see holdfast publish")
