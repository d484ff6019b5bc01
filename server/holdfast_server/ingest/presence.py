"""What the broker says of a device's connection, kept beside what the device says itself: a hint, never evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, select

from holdfast_server.store import changes
from holdfast_server.store.schema import device_state, memberships
from holdfast_server.store.upsert import insert_into
from holdfast_shared.errors import Malformed

_WORDS: Final = {b"online": "online", b"offline": "offline", b"": ""}


def read(payload: bytes) -> str:
    """`online`, `offline`, or empty when it was cleared. Raises Malformed."""
    word = _WORDS.get(payload)
    if word is None:
        raise Malformed(f"{payload[:32]!r} is no presence", next_step="publish online or offline")
    return word


def record(connection: Connection, said: Mapping[str, str]) -> None:
    """By device, its newest presence. Those who are not enrolled are passed over; what is known already changes nothing."""
    statement = (
        select(memberships.c.device, device_state.c.presence)
        .join_from(memberships, device_state, memberships.c.device == device_state.c.device, isouter=True)
        .where(memberships.c.device.in_(sorted(said)))
    )
    changed = [
        {"device": row.device, "presence": said[row.device], "last_seen_at": 0}
        for row in connection.execute(statement)
        if (row.presence or "") != said[row.device]
    ]
    if not changed:
        return
    insert = insert_into(connection, device_state)
    connection.execute(
        insert.on_conflict_do_update(index_elements=["device"], set_={"presence": insert.excluded.presence}), changed
    )
    changes.mark(connection, "fleet")
