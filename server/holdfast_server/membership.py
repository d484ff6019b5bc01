"""Enrolment: what a device is, as an enrolment key signed it. Only a higher counter changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from sqlalchemy import Connection, func, select

from holdfast_server.core.rollout import Moment
from holdfast_server.refusals import Limited
from holdfast_server.store import changes
from holdfast_server.store.database import Database
from holdfast_server.store.schema import memberships
from holdfast_server.store.upsert import insert_into
from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import Conflict, Malformed, NotSupported, Untrusted
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire.membership import ENVELOPE_BYTES_MAX, TYPE, Membership

# What one server is measured for, ten times over; more is a loop of somebody who holds the enrolment key.
DEVICES_MAX: Final = 100_000


class Context(Protocol):
    @property
    def database(self) -> Database: ...

    @property
    def authorities(self) -> Authorities: ...

    @property
    def now(self) -> Callable[[], Moment]: ...


def enrol(context: Context, envelope: bytes) -> tuple[dict[str, Any], bool]:
    """The membership as it stands, and whether it is new or changed. May be repeated.

    Raises HoldfastError, having changed nothing. The scheduler sees the change and issues a new region its documents.
    """
    verified = signing.verify(envelope, TYPE, context.authorities.enrolment_keys(), size_bytes_max=ENVELOPE_BYTES_MAX)
    membership = strict_json.decode(verified.payload, Membership, what="membership", size_bytes_max=ENVELOPE_BYTES_MAX)
    _check(membership, context.authorities.fleet)
    with context.database.write() as connection:
        changed = _is_newer(connection, membership, digest_of(verified.payload))
        if changed:
            _store(connection, membership, envelope, _later_than_all(connection, context.now().at))
            changes.mark(connection, "fleet")
    return {"device": membership.device, "region": membership.region, "counter": membership.counter}, changed


def _check(membership: Membership, fleet: str) -> None:
    if membership.fleet != fleet:
        raise Untrusted(
            f"the membership is of the fleet {membership.fleet!r}, this is {fleet!r}",
            field="fleet",
            next_step="sign it for this fleet, or send it to the other's server",
        )
    unknown = sorted(set(membership.critical) - set(Membership.__struct_fields__))
    if unknown:
        raise NotSupported(
            f"it calls {', '.join(unknown)} critical, which this server does not know",
            field="critical",
            next_step="update the server, or leave the field out",
        )
    try:
        PublicKey.from_text(membership.public_key)
    except (Malformed, ValueError) as error:
        raise Malformed(
            "the device's public key is no Ed25519 key in base64",
            field="public_key",
            next_step="take it from the device's key file: holdfast device enrol --device-key FILE",
        ) from error


def _is_newer(connection: Connection, membership: Membership, digest: str) -> bool:
    """False: exactly this is stored. Raises Conflict when something else or newer is, Limited when it is one too many."""
    found = connection.execute(
        select(memberships.c.counter, memberships.c.envelope).where(memberships.c.device == membership.device)
    ).one_or_none()
    if found is None:
        if connection.execute(select(func.count()).select_from(memberships)).scalar_one() >= DEVICES_MAX:
            raise Limited(
                f"{DEVICES_MAX} devices are enrolled; this server takes no more",
                field="device",
                next_step="run a second server for another fleet",
            )
        return True
    if membership.counter > found.counter:
        return True
    stored = signing.unverified_payload(bytes(found.envelope), TYPE, size_bytes_max=ENVELOPE_BYTES_MAX)
    if membership.counter == found.counter and digest_of(stored) == digest:
        return False
    raise Conflict(
        f"{membership.device} has a membership with the counter {found.counter}; this one has {membership.counter}",
        field="counter",
        next_step=f"sign it with a counter of at least {found.counter + 1}; `holdfast device enrol` does so by itself",
    )


def _later_than_all(connection: Connection, now: int) -> int:
    """Now, or just after the last change by a clock that was set back since: others see a change by the newest time."""
    newest = connection.execute(select(func.max(memberships.c.received_at))).scalar_one()
    return max(now, (newest or 0) + 1)


def _store(connection: Connection, membership: Membership, envelope: bytes, now: int) -> None:
    values = {
        "region": membership.region,
        "stage": membership.stage,
        "counter": membership.counter,
        "labels": strict_json.encode(membership.selectable).decode(),
        "public_key": membership.public_key,
        "received_at": now,
        "envelope": envelope,
    }
    statement = insert_into(connection, memberships).values(device=membership.device, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["device"], set_=values))
