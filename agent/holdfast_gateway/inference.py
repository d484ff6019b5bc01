"""One request on its way: what was asked, who is waiting, and where it failed so far."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from holdfast_gateway.counts import Bad
from holdfast_gateway.losses import Loss
from holdfast_worker.protocol import NO_HEADER

if TYPE_CHECKING:
    from holdfast_gateway.slot import Slot

SAID_CHARACTERS_MAX: Final = 500


class _Error(msgspec.Struct, frozen=True):
    error: str


class Refused(StrEnum):
    """Why no worker was asked a request."""

    NO_RELEASE = "no-release"  # nobody could answer
    OTHER_VERSION = "other-version"  # it named one that does not serve
    QUEUE_FULL = "queue-full"  # too many wait for a worker that is being started again
    QUARANTINED = "quarantined"  # the same request killed a worker in both slots


class Asker(Protocol):
    """Who waits for the answer: one connection."""

    @property
    def gone(self) -> bool:
        """Nobody is waiting any more."""

    @property
    def ended(self) -> bool:
        """It says nothing more: it waits for its answer, or has gone without a word."""

    def answer(self, status: int, header_length: int, body: bytes | memoryview) -> None:
        """The answer, exactly once. `body` is read during the call, unless it is larger than `frames.BUFFER_BYTES`."""


class Failure(NamedTuple):
    """One slot that could not answer it. `loss`: its worker was lost at it."""

    slot: Slot
    bad: Bad
    loss: Loss | None
    said: str


class Inference:
    """`version` is the release's version that was asked for, or empty; `since` is when it came (CLOCK_MONOTONIC),
    `waits_until` how long it may wait while a slot is being started, `behind` a slot that was asked it and lost its worker at
    an earlier request. The body is kept until it is answered: another slot may be asked with the same bytes."""

    __slots__ = (
        "asker",
        "behind",
        "body",
        "failures",
        "hand_overs",
        "header_length",
        "null_answer",
        "since",
        "version",
        "waits_until",
        "wants_binary",
    )

    def __init__(
        self,
        asker: Asker,
        body: bytes | bytearray,
        *,
        version: str,
        wants_binary: bool,
        header_length: int,
        since: float,
    ) -> None:
        self.asker = asker
        self.since = since
        self.body = body
        self.version = version
        self.wants_binary = wants_binary
        self.header_length = header_length
        self.failures: list[Failure] = []
        self.hand_overs = 0
        self.behind: Slot | None = None
        self.waits_until: float | None = None
        self.null_answer: tuple[int, bytes] | None = None

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error."""
        self.asker.answer(status, NO_HEADER, error_body(message))


def error_body(message: str) -> bytes:
    """The protocol's form of an error."""
    return msgspec.json.encode(_Error(error=message))


def error_of(body: memoryview) -> str:
    """What a worker said in that form, cut to what fits a line."""
    try:
        return msgspec.json.decode(body, type=_Error).error[:SAID_CHARACTERS_MAX]
    except msgspec.DecodeError:
        return "it raised, and did not say why"
