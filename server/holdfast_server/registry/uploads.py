"""Blobs that a signed manifest asked for and that may therefore be sent: nobody writes a byte here on their own account.

A row stays until a manifest that names the blob is registered. One whose day is over goes, and its blob with it unless
somebody else names it: what is never finished takes no room for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, delete, func, select

from holdfast_server.refusals import Limited
from holdfast_server.registry.weights import Declared
from holdfast_server.store.schema import expected_uploads
from holdfast_server.store.upsert import insert_into

SECOND_US: Final = 1_000_000
# A person who went home carries on the next morning.
EXPECTED_US: Final = 86_400 * SECOND_US
# Several releases at their largest at once; more is a loop somewhere.
EXPECTED_MAX: Final = 4096
EXPECTED_BYTES_MAX: Final = 256 * 1024**3
_weights: Final[msgspec.json.Decoder[Declared | None]] = msgspec.json.Decoder(Declared | None)


class Expected(NamedTuple):
    """`weights`: what the file is declared to be, if it is a model's weights."""

    size_bytes: int
    weights: Declared | None


def expect(connection: Connection, wanted: Mapping[str, int], weights: Mapping[str, Declared], now: int) -> None:
    """Have these blobs expected for a day from now. May be repeated. Raises Limited."""
    table = expected_uploads
    for digest, size_bytes in wanted.items():
        values = {
            "size_bytes": size_bytes,
            "weights": msgspec.json.encode(weights.get(digest)).decode(),
            "expires_at": now + EXPECTED_US,
        }
        statement = insert_into(connection, table).values(digest=digest, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=values))
    count, size = connection.execute(select(func.count(), func.coalesce(func.sum(table.c.size_bytes), 0))).one()
    if count > EXPECTED_MAX or size > EXPECTED_BYTES_MAX:
        raise Limited(
            f"{count} files of {size} bytes would be waited for; at most {EXPECTED_MAX} of {EXPECTED_BYTES_MAX} may be",
            field="blobs",
            next_step="finish publishing what was begun; what is not finished is forgotten after a day",
        )


def expected(connection: Connection, digest: str, now: int) -> Expected | None:
    found = connection.execute(
        select(expected_uploads.c.size_bytes, expected_uploads.c.weights).where(
            expected_uploads.c.digest == digest,
            expected_uploads.c.expires_at > now,
        )
    ).one_or_none()
    if found is None:
        return None
    return Expected(found.size_bytes, _weights.decode(found.weights))


def fulfilled(connection: Connection, digests: Mapping[str, int]) -> None:
    """A manifest that names them is registered: they are waited for no more."""
    connection.execute(delete(expected_uploads).where(expected_uploads.c.digest.in_(list(digests))))


def expired(connection: Connection, now: int) -> list[str]:
    """Digests whose day is over."""
    return list(
        connection.execute(
            select(expected_uploads.c.digest).where(expected_uploads.c.expires_at <= now).limit(EXPECTED_MAX)
        ).scalars()
    )


def forget(connection: Connection, digests: list[str]) -> None:
    connection.execute(delete(expected_uploads).where(expected_uploads.c.digest.in_(digests)))
