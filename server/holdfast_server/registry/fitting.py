"""Whether a device could run a release, by what it last said of itself: asked with the function that a fetch asks before a byte.

A prediction like any other of the server's: the device may have changed since, and decides by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import UnsetType
from sqlalchemy import Connection, select

from holdfast_server.registry.manifests import stored_environment, stored_model, stored_release
from holdfast_server.store import schema
from holdfast_shared import variants
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.variants import Machine
from holdfast_shared.wire.environment import Environment
from holdfast_shared.wire.release import ModelVersion, Variant
from holdfast_shared.wire.report import MachineFacts


class Needs(NamedTuple):
    """What a release in an environment asks of a machine. `environment` None: the device's own."""

    models: tuple[ModelVersion, ...]
    environment: Environment | None


def needs(connection: Connection, digest: str, environment: str) -> Needs:
    """Of a release that is not published, nothing is known."""
    table = schema.releases
    envelope = connection.execute(select(table.c.envelope).where(table.c.digest == digest)).scalar_one_or_none()
    wanted = [stage.model.digest for stage in stored_release(bytes(envelope)).stages] if envelope is not None else []
    found = connection.execute(select(schema.models.c.envelope).where(schema.models.c.digest.in_(wanted))).scalars()
    own = environment == SYSTEM_ENVIRONMENT
    return Needs(
        tuple(stored_model(bytes(one)) for one in found), None if own else _environment(connection, environment)
    )


def lacking(asked: Needs, facts: MachineFacts | UnsetType) -> str:
    """Why no variant of a model fits the machine, in words; empty when each has one that does, or nothing is known of it."""
    if isinstance(facts, UnsetType):
        return ""
    machine = variants.in_environment(Machine.of(facts), asked.environment)
    for model in asked.models:
        found = variants.choose(model, machine)
        if not isinstance(found, Variant):
            return variants.none_fits(model, found).words
    return ""


def _environment(connection: Connection, digest: str) -> Environment | None:
    table = schema.environments
    envelope = connection.execute(select(table.c.envelope).where(table.c.digest == digest)).scalar_one_or_none()
    return stored_environment(bytes(envelope)) if envelope else None
