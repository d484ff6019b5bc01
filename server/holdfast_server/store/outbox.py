"""Assignments on their way out: signed and stored in the transaction that decided them, published later.

- `(epoch, seq)` of one (scope, pipeline) only grows, and is above every order that any device reported: a restored database
  recovers by what devices hold.
- A document is issued anew only when what it says changed, when a device was found to hold a later one, or when half its
  life is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, Table, select, update

from holdfast_server.store.schema import assignments, seq_floor
from holdfast_server.store.upsert import insert_into
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Conflict
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import PAYLOAD_BYTES_MAX, TYPE, Assignment

# After that a device goes forward no more, though it keeps what serves; we renew at half of it.
LIFETIME_US: Final = 400 * 86_400 * 1_000_000
SEQ_MAX: Final = 2**53 - 1
# A restored backup is behind by what was issued since it was made. A report that claims more is not believed: one lying
# device could otherwise use up all numbers of its region.
SEQ_AHEAD_MAX: Final = 1_000_000


class Director(NamedTuple):
    """Who signs assignments: the fleet, the key, and the key's epoch in `authorities.json`."""

    fleet: str
    key: PrivateKey
    epoch: int


class Stored(NamedTuple):
    """An assignment as it is sent."""

    scope: str
    pipeline: str
    payload_digest: str
    envelope: bytes


def issue(connection: Connection, director: Director, documents: Iterable[Assignment], now: int) -> list[Stored]:
    """Sign and store those of `documents` whose content changed; their fleet, order and times are set here.

    May be repeated: equal content is not issued again. Raises Conflict when devices already obey a later director.
    """
    issued = []
    for document in documents:
        scope, pipeline = document.scope.key, document.pipeline
        stored = _one(connection, assignments, scope, pipeline)
        floor = _one(connection, seq_floor, scope, pipeline)
        content = content_digest(document)
        if stored is None or not _stands(stored, floor, content, director, now):
            issued.append(
                _sign_and_store(connection, director, document, content, _next_seq(stored, floor, director), now)
            )
    return issued


def content_digest(document: Assignment) -> str:
    """Of what a document says, without its order, its times and its cause."""
    return digest_of(
        strict_json.encode(
            msgspec.structs.replace(document, fleet="", epoch=0, seq=0, issued_at=0, not_after=0, cause="")
        )
    )


def raise_floor(connection: Connection, director: Director, scope: str, pipeline: str, order: tuple[int, int]) -> bool:
    """Note that a device holds a document of that order. True: ours is older than that, and must be issued anew."""
    stored = _one(connection, assignments, scope, pipeline)
    ours = (stored.epoch, stored.seq) if stored is not None else (director.epoch, 0)
    if order <= ours:
        return False
    if order[0] != director.epoch or order[1] > ours[1] + SEQ_AHEAD_MAX:
        raise Conflict(
            f"a device reports order {order} of {scope}/{pipeline}; ours is {ours}",
            field="accepted",
            next_step="compare authorities.json on both sides; the report counts, this claim does not",
            code="order-ahead",
        )
    statement = insert_into(connection, seq_floor).values(scope=scope, pipeline=pipeline, epoch=order[0], seq=order[1])
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["scope", "pipeline"],
            set_={"epoch": order[0], "seq": order[1]},
            where=(seq_floor.c.epoch < order[0]) | ((seq_floor.c.epoch == order[0]) & (seq_floor.c.seq < order[1])),
        )
    )
    return stored is not None


def renew(connection: Connection, director: Director, now: int) -> list[Stored]:
    """Issue again, with the same content, whatever is too old, of an earlier epoch, or overtaken."""
    held = [
        strict_json.stored(signing.unverified_payload(row.envelope, TYPE, size_bytes_max=len(row.envelope)), Assignment)
        for row in connection.execute(select(assignments.c.envelope))
    ]
    return issue(connection, director, held, now)


def stored_documents(connection: Connection, scope: str | None = None, *, unpublished: bool = False) -> list[Stored]:
    """Assignments as they are sent: all, of one scope, or those the broker has not been seen to hold."""
    statement = select(
        assignments.c.scope, assignments.c.pipeline, assignments.c.payload_digest, assignments.c.envelope
    ).order_by(assignments.c.scope, assignments.c.pipeline)
    if scope is not None:
        statement = statement.where(assignments.c.scope == scope)
    if unpublished:
        statement = statement.where(assignments.c.published.is_(False))
    return [Stored(*row) for row in connection.execute(statement)]


def mark_published(connection: Connection, document: Stored) -> None:
    """The broker holds exactly this document."""
    connection.execute(
        update(assignments)
        .where(
            assignments.c.scope == document.scope,
            assignments.c.pipeline == document.pipeline,
            assignments.c.payload_digest == document.payload_digest,
        )
        .values(published=True)
    )


def mark_all_unpublished(connection: Connection) -> None:
    """The broker may have lost everything."""
    connection.execute(update(assignments).values(published=False))


def _stands(stored: Row[Any], floor: Row[Any] | None, content: str, director: Director, now: int) -> bool:
    return bool(
        stored.content_digest == content
        and stored.epoch == director.epoch
        and (floor is None or (stored.epoch, stored.seq) >= (floor.epoch, floor.seq))
        and stored.not_after - now > LIFETIME_US // 2
    )


def _next_seq(stored: Row[Any] | None, floor: Row[Any] | None, director: Director) -> int:
    epoch, seq = max((row.epoch, row.seq) for row in (stored, floor) if row is not None) if stored or floor else (0, 0)
    if epoch > director.epoch or seq >= SEQ_MAX:
        raise Conflict(
            f"documents of director epoch {epoch} are out; this key is of epoch {director.epoch}",
            field="--director-key",
            next_step="start the server with the newest director's key, or give the key a higher epoch in authorities.json",
        )
    return int(seq) + 1 if epoch == director.epoch else 1


def _sign_and_store(
    connection: Connection, director: Director, document: Assignment, content: str, seq: int, now: int
) -> Stored:
    final = msgspec.structs.replace(
        document,
        fleet=director.fleet,
        epoch=director.epoch,
        seq=seq,
        issued_at=now,
        not_after=now + LIFETIME_US,
    )
    payload = strict_json.encode(final)
    assert len(payload) <= PAYLOAD_BYTES_MAX, "documents are composed within the wire's limits"
    values: dict[str, Any] = {
        "epoch": director.epoch,
        "seq": seq,
        "issued_at": now,
        "not_after": final.not_after,
        "payload_digest": digest_of(payload),
        "content_digest": content,
        "envelope": signing.sign(payload, TYPE, [director.key]),
        "published": False,
    }
    key = {"scope": final.scope.key, "pipeline": final.pipeline}
    statement = insert_into(connection, assignments).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["scope", "pipeline"], set_=values))
    return Stored(key["scope"], key["pipeline"], values["payload_digest"], values["envelope"])


def _one(connection: Connection, table: Table, scope: str, pipeline: str) -> Row[Any] | None:
    statement = select(table).where(table.c.scope == scope, table.c.pipeline == pipeline)
    return connection.execute(statement).one_or_none()
