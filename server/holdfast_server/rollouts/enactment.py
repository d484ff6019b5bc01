"""Carrying out what the core decided, in one transaction: records, base rules, condemnations, documents, decisions.

Either all of it is stored or none; documents leave by the outbox afterwards. Everything may be repeated: a document is issued
only when it says something new.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from holdfast_server.audit import decisions
from holdfast_server.core.compose import compose, document
from holdfast_server.core.rollout import Decide, Moment, Rollout, Step
from holdfast_server.core.standing import Standing, after_step
from holdfast_server.rollouts import storage
from holdfast_server.rollouts.context import Context
from holdfast_server.store import changes, devices, outbox


def enact_step(connection: Connection, context: Context, step: Step, now: Moment) -> Rollout:
    """One step of a rollout; its record as stored."""
    pipeline = step.record.plan.pipeline
    before = storage.standing(connection, pipeline)
    enact(connection, context, pipeline, before, after_step(before, step), [step], now)
    return step.record


def enact(
    connection: Connection,
    context: Context,
    pipeline: str,
    before: Standing,
    after: Standing,
    steps: Sequence[Step],
    now: Moment,
) -> dict[str, list[str]]:
    """Store what stands after `steps`, issue the documents that changed, and write the decisions down.

    Returns, as evidence, the scopes whose document was issued, and what did not fit into one.
    """
    storage.save_standing(connection, pipeline, before, after, now)
    decided = [(step.record, command) for step in steps for command in step.commands if isinstance(command, Decide)]
    for step in steps:
        storage.save_rollout(connection, step.record)
    cause = "; ".join(f"{record.id}: {one.what}" for record, one in decided) or "taken back"
    issued, omitted = recompose(connection, context, pipeline, after, now, cause=cause)
    documents = {"issued": issued, "omitted": omitted}
    for record, one in decided:
        evidence = {"pipeline": pipeline, "release": record.plan.release, "verdict": one.verdict, **documents}
        decisions.record(connection, moment=now, kind=one.what, subject=record.id, cause=one.why, evidence=evidence)
    changes.mark(connection, "rollouts")
    return documents


def recompose(
    connection: Connection, context: Context, pipeline: str, standing: Standing, now: Moment, *, cause: str
) -> tuple[list[str], list[str]]:
    """Compose the pipeline's documents of all regions; which were issued because they changed, and what did not fit."""
    documents, omitted = [], []
    for region in devices.regions(connection):
        body = compose(standing, region)
        omitted += [f"{region}: {text}" for text in body.omitted]
        documents.append(document(body, region=region, pipeline=pipeline, cause=cause))
    issued = outbox.issue(connection, context.director, documents, now.at)
    return [one.scope for one in issued], omitted


def recompose_all(connection: Connection, context: Context, now: Moment, *, cause: str) -> None:
    """The documents of every pipeline: after a start, and when a region gets its first device."""
    for pipeline in storage.pipelines(connection):
        recompose(connection, context, pipeline, storage.standing(connection, pipeline), now, cause=cause)
