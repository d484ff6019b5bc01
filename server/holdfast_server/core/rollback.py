"""A request to take a release back: asked for by one person, approved by another, and only then acted on."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from holdfast_server.core.release_in import ReleaseIn, Taken
from holdfast_server.core.returning import Returning
from holdfast_server.core.segments import Match
from holdfast_shared.errors import Conflict, Malformed, Untrusted
from holdfast_shared.wire.assignment import ReleaseRef

# A request that nobody approved in a day was about another day's trouble.
WAITING_MAX_S: Final = 86_400


class State(StrEnum):
    WAITING = "waiting"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class Signers(msgspec.Struct, frozen=True, kw_only=True):
    """The people behind the good signatures, by the role their key has. One person may hold keys of both."""

    operators: frozenset[str]
    approvers: frozenset[str]


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """`request` is the digest of the signed payload: an approval is of exactly these bytes. `environment`: it alone is taken
    back, and the release goes on in another; None: the release, wherever it runs. With `every_version`, the environment is
    taken back from whatever runs in it, and `also` is where the other releases of the segment go on.
    """

    id: str
    pipeline: str
    release: ReleaseRef
    segment: Match
    reason: str
    requested_by: str
    request: str
    requested_at: int
    to: ReleaseIn
    environment: str | None = None
    every_version: bool = False
    also: tuple[ReleaseIn, ...] = ()
    state: State = State.WAITING
    approved_by: str = ""
    why: str = ""
    accepted_at: int | None = None
    accepted_monotonic_us: int | None = None
    returning: Returning = Returning()

    @property
    def taken(self) -> Taken:
        return Taken(release=None if self.every_version else self.release, environment=self.environment)


def requester(signers: Signers) -> str:
    """Who asks: an operator that signed. Raises Untrusted without one, Malformed when it is not clear which."""
    if not signers.operators:
        raise Untrusted(
            "an operator must sign a rollback", field="signatures", next_step="sign it with an operator's key"
        )
    if len(signers.operators) == 1:
        return next(iter(signers.operators))
    only_operators = signers.operators - signers.approvers
    if len(only_operators) == 1:
        return next(iter(only_operators))
    # Each may ask and each may approve: the first by name asks, the other approves; they are two people either way.
    if not only_operators:
        return min(signers.operators)
    raise Malformed(
        f"several operators signed: {', '.join(sorted(signers.operators))}",
        field="signatures",
        next_step="sign with one operator's key and one approver's",
    )


def second_person(signers: Signers, requested_by: str) -> str | None:
    """An approver among the signers who is somebody else, if there is one."""
    return min(signers.approvers - {requested_by}, default=None)


def accepted(rollback: Rollback, *, by: str, at: int, monotonic_us: int, devices: tuple[str, ...]) -> Rollback:
    """With a second person's yes; `devices` serve the release now.

    Raises Conflict when it waits no more, Untrusted when the yes is the requester's own.
    """
    check_waiting(rollback, at)
    if by == rollback.requested_by:
        raise Untrusted(
            f"{by} asked for this rollback and cannot approve it",
            field="signatures",
            next_step="have a second person approve it",
        )
    return msgspec.structs.replace(
        rollback,
        state=State.ACCEPTED,
        approved_by=by,
        accepted_at=at,
        accepted_monotonic_us=monotonic_us,
        returning=Returning(devices=devices),
    )


def check_waiting(rollback: Rollback, now: int) -> None:
    """Raises Conflict when it waits no more, or waited too long."""
    if rollback.state is not State.WAITING or overdue(rollback, now):
        over = "too old" if rollback.state is State.WAITING else f"{rollback.state} already"
        raise Conflict(
            f"rollback {rollback.id} is {over}", field="rollback", next_step="ask for a new one if it is still needed"
        )


def check_request(rollback: Rollback, request: str) -> None:
    """Raises Conflict unless the approval names exactly the bytes that were asked."""
    if request != rollback.request:
        raise Conflict(
            f"the approval is of another request than rollback {rollback.id}",
            field="request",
            next_step=f"approve {rollback.request}",
        )


def overdue(rollback: Rollback, now: int) -> bool:
    return rollback.state is State.WAITING and now - rollback.requested_at > WAITING_MAX_S * 1_000_000


def refused(rollback: Rollback, why: str) -> Rollback:
    return msgspec.structs.replace(rollback, state=State.REFUSED, why=why)
