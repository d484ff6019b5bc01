"""What devices say they hold of our documents: a later order than ours means that this database is older than they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sqlalchemy import Connection

from holdfast_server.rollouts.context import Context
from holdfast_server.store import outbox
from holdfast_server.store.outbox import Director
from holdfast_shared.errors import Conflict
from holdfast_shared.wire.report import Report

log: Final = logging.getLogger(__name__)


class Raised(NamedTuple):
    disbelieved: tuple[str, ...]
    overtaken: bool


def raise_floors(
    connection: Connection, director: Director, reports: Iterable[Report], regions: Mapping[str, str]
) -> Raised:
    """Note the highest believable order that was reported of each document.

    A device speaks for its own region and itself: what it still holds of a region it has left, others say better.
    """
    claims: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for report in reports:
        own = (f"region/{regions[report.device]}", f"device/{report.device}")
        for document in report.accepted:
            if document.scope.key in own:
                key = (document.scope.key, document.pipeline)
                claims.setdefault(key, set()).add((document.epoch, document.seq))
    disbelieved: list[str] = []
    overtaken = False
    for (scope, pipeline), orders in sorted(claims.items()):
        for order in sorted(orders, reverse=True):  # ends at the first that is believed: those below say nothing more
            try:
                overtaken |= outbox.raise_floor(connection, director, scope, pipeline, order)
                break
            except Conflict as refusal:
                disbelieved.append(str(refusal))
    return Raised(tuple(disbelieved), overtaken)


def renew(context: Context) -> None:
    """Issue again, in a transaction of its own, what is old or overtaken. May be repeated."""
    try:
        with context.database.write() as connection:
            renewed = outbox.renew(connection, context.director, context.now().at)
    except Conflict as refusal:
        log.warning("documents cannot be issued again: %s", refusal)
        return
    for document in renewed:
        log.info("issued again: %s/%s", document.scope, document.pipeline)
