"""The append-only list of decisions. Each is written in the transaction that carries it out, so neither is without the other."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, insert, select

from holdfast_server.core.rollout import Moment
from holdfast_server.store import changes
from holdfast_server.store.schema import decisions

LIMIT_MAX: Final = 1000


def record(
    connection: Connection, *, moment: Moment, kind: str, subject: str, cause: str, evidence: object = None
) -> int:
    """Add one decision; its number. `evidence` is anything msgspec can encode."""
    statement = insert(decisions).values(
        at=moment.at,
        monotonic_us=moment.monotonic_us,
        kind=kind,
        subject=subject,
        cause=cause,
        evidence=msgspec.json.encode(evidence).decode(),
    )
    number = connection.execute(statement.returning(decisions.c.id)).scalar_one()
    changes.mark(connection, "decisions")
    return int(number)


def listed(connection: Connection, *, after: int | None, limit: int) -> dict[str, Any]:
    """The newest, newest first; or, with `after`, those after that number in their order. `next` is the next `after`."""
    limit = max(1, min(limit, LIMIT_MAX))
    statement = select(decisions).limit(limit + 1)
    if after is None:
        statement = statement.order_by(decisions.c.id.desc())
    else:
        statement = statement.where(decisions.c.id > after).order_by(decisions.c.id)
    rows = connection.execute(statement).all()
    shown = [
        {
            "number": row.id,
            "at": row.at,
            "monotonic_us": row.monotonic_us,
            "what": row.kind,
            "subject": row.subject,
            "why": row.cause,
            "evidence": json.loads(row.evidence),
        }
        for row in rows[:limit]
    ]
    more = after is not None and len(rows) > limit
    return {"decisions": shown, "next": shown[-1]["number"] if more else None}
