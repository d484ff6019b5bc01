"""The door for an operator's signed command, the same over HTTP and MQTT: whose it is, when it is for, and that it is new.

What it then means is `rollouts.commands`' business. The id is taken in the transaction that carries the command out, so a
message that is delivered twice, or sent over both doors, acts once; and a refusal takes nothing.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import Connection, delete

from holdfast_server.rollouts import commands
from holdfast_server.rollouts.context import Context
from holdfast_server.store.schema import commands_seen
from holdfast_server.store.upsert import insert_into
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Conflict, Malformed, Untrusted
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.command import ENVELOPE_BYTES_MAX, LIFETIME_MAX_S, TYPE, Command, verb_of

SECOND_US: Final = 1_000_000
# Two clocks set by NTP differ by far less; one set by hand is told so.
CLOCK_SKEW_S: Final = 60
# Ids are kept this long after their commands ended, so that our own clock may be set back by as much and nothing acts twice.
SEEN_KEPT_US: Final = 86_400 * SECOND_US

log: Final = logging.getLogger(__name__)


def accept(context: Context, envelope: bytes, *, verb: str | None = None) -> dict[str, Any]:
    """Carry the command out, and return the rollout or rollback as the API shows it.

    `verb`: what the sender called it, if the way it came says so. Raises HoldfastError, having changed nothing.
    """
    known = {**context.authorities.operator_keys(), **context.authorities.approver_keys()}
    verified = signing.verify(envelope, TYPE, known, size_bytes_max=ENVELOPE_BYTES_MAX)
    command = strict_json.decode(verified.payload, Command, what="command", size_bytes_max=ENVELOPE_BYTES_MAX)
    _check_addressed(context, command, verb)
    with context.database.write() as connection:
        now = context.now().at
        _check_times(command, now)
        _take_id(connection, command, now)
        done = commands.execute(connection, context, command, digest_of(verified.payload), verified.signers)
    signers = ", ".join(sorted({context.authorities.name_of(key) for key in verified.signers}))
    log.info("carried out %s %s, signed by %s: %s", verb_of(command.act), command.id, signers, done.get("id"))
    return done


def _check_addressed(context: Context, command: Command, verb: str | None) -> None:
    if command.fleet != context.authorities.fleet:
        raise Untrusted(
            f"the command is for the fleet {command.fleet!r}, this is {context.authorities.fleet!r}",
            field="fleet",
            next_step="sign it for this fleet, or send it to the other's server",
        )
    if verb is not None and verb != verb_of(command.act):
        raise Malformed(
            f"it was sent as {verb!r:.80}, but what is signed is {verb_of(command.act)!r}",
            field="act.verb",
            next_step=f"send it as {verb_of(command.act)}",
        )


def _check_times(command: Command, now: int) -> None:
    if not 0 < command.not_after - command.issued_at <= LIFETIME_MAX_S * SECOND_US:
        raise Malformed(
            f"a command is valid for at most {LIFETIME_MAX_S} s after issued_at",
            field="not_after",
            next_step=f"sign it again with --valid of at most {LIFETIME_MAX_S}",
        )
    if command.issued_at > now + CLOCK_SKEW_S * SECOND_US:
        raise Untrusted(
            f"it was issued {(command.issued_at - now) // SECOND_US} s in the future, by this server's clock",
            field="issued_at",
            next_step="set the clock where it was signed, or the server's, and sign it again",
            code="not-yet-valid",
        )
    if command.not_after + CLOCK_SKEW_S * SECOND_US < now:
        raise Untrusted(
            f"it was valid until {(now - command.not_after) // SECOND_US} s ago, by this server's clock",
            field="not_after",
            next_step="sign it again: a command is for now",
            code="expired",
        )


def _take_id(connection: Connection, command: Command, now: int) -> None:
    """Raises Conflict when it was taken before."""
    connection.execute(delete(commands_seen).where(commands_seen.c.not_after < now - SEEN_KEPT_US))
    statement = insert_into(connection, commands_seen).values(
        id=command.id, not_after=command.not_after, received_at=now
    )
    taken = connection.execute(statement.on_conflict_do_nothing().returning(commands_seen.c.id)).first()
    if taken is None:
        raise Conflict(
            f"the command {command.id} was carried out before; it does not act twice",
            field="id",
            next_step="look at what it did: holdfast rollbacks, holdfast rollout status; to do it again, sign it anew",
            code="already-done",
        )
