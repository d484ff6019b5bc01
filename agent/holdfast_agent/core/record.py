"""The record: everything a device must still know after a power cut, for all its pipelines, in one value.

- The agent is its only writer; it is saved *before* it is acted on. The gateway reads it at start.
- A slot is a pair of digests. What any slot names is on disk and is never deleted.
- To *activate* is to save a record in which another release serves; each such save adds to `activations`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.assign import LocalCondemnation, Target
from holdfast_shared.wire.assignment import Requests

FORMAT: Final = 1
SIZE_BYTES_MAX: Final = 8 * 1024**2
# The newest activations kept: enough to read a year of a device's life, few enough to stay one small write.
ACTIVATIONS_MAX: Final = 64
CONDEMNED_HERE_MAX: Final = 64
REPAIRS_MAX: Final = 4  # there are two slots, and one on trial


class State(StrEnum):
    """Where a pipeline's release is in its life."""

    IDLE = "idle"
    FETCHING = "fetching"
    STAGED = "staged"
    SELF_TESTING = "self_testing"
    TRIAL = "trial"
    SHADOWING = "shadowing"
    FALLING_BACK = "falling_back"


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """A save after which `target` serves. `at` is wall time, µs; `cause` a stable word: trial, commit, fallback, rollback."""

    target: Target
    at: int
    cause: str


class Condemnation(LocalCondemnation, frozen=True, kw_only=True):
    """What this device condemned by itself, and why: `code` is a stable failure code."""

    code: str = ""
    at: int = 0


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts at one target that condemned nothing, but each waits longer (full jitter, to 24 h). `not_before` is wall µs."""

    target: str
    count: int
    not_before: int


class FirstWanted(msgspec.Struct, frozen=True, kw_only=True):
    """The target that a rule with a spread gives, and when it was first seen (wall µs)."""

    target: str
    at: int


class Shadowed(msgspec.Struct, frozen=True, kw_only=True):
    """How long a target has shadowed, in hours that have begun: a clock that is set, or lost, changes nothing about it."""

    target: str
    hours: int


class PipelineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline's slots and where its candidate is. `deadline` is wall µs; `single`: `previous` is empty after a fallback.

    `trial_starts` counts starts of the machine or of its gateway within the trial; `repairs` attempts to mend each slot.
    `requests`: the candidate on trial answers only these; the trial lasts until the decision changes. `barred`: of the slots,
    by key, those that a document condemns: who starts from the record alone reads no document.
    """

    state: State = State.IDLE
    current: Target | None = None
    previous: Target | None = None
    candidate: Target | None = None
    deadline: int | None = None
    trial_began: int | None = None
    trial_starts: int = 0
    requests: Requests | None = None
    single: bool = False
    unproven: bool = False
    barred: tuple[str, ...] = ()
    condemned_here: Annotated[tuple[Condemnation, ...], msgspec.Meta(max_length=CONDEMNED_HERE_MAX)] = ()
    attempts: Attempts | None = None
    first_wanted: FirstWanted | None = None
    shadowed: Shadowed | None = None
    repairs: Annotated[tuple[Attempts, ...], msgspec.Meta(max_length=REPAIRS_MAX)] = ()
    activations: Annotated[tuple[Activation, ...], msgspec.Meta(max_length=ACTIVATIONS_MAX)] = ()

    @property
    def serving(self) -> Target | None:
        """What answers requests: the candidate while on trial, else `current`."""
        return self.candidate if self.state is State.TRIAL and self.candidate is not None else self.current

    @property
    def shadow(self) -> Target | None:
        """What is asked beside it, and answers nobody."""
        return self.candidate if self.state is State.SHADOWING else None

    @property
    def held(self) -> tuple[Target, ...]:
        """The slots whose bytes must verify: the two, and one on trial, which may be so for weeks."""
        tried = self.candidate if self.state is State.TRIAL else None
        return tuple(one for one in (self.current, self.previous, tried) if one is not None)

    @property
    def answering(self) -> tuple[Target, ...]:
        """All that requests are given to: in a trial of a share of them `current` too."""
        both = (self.serving, self.current if self.requests is not None else None)
        return tuple(dict.fromkeys(one for one in both if one is not None))

    @property
    def refuge(self) -> Target | None:
        """The other good slot, which answers what the serving one cannot; not one that failed here, or is condemned."""
        bad = {entry.target.key for entry in self.condemned_here} | {*self.barred}
        bad |= {self.serving.key} if self.serving is not None else set()
        slots = (self.current, self.previous)
        return next((slot for slot in slots if slot is not None and slot.key not in bad), None)

    @property
    def shared(self) -> Requests | None:
        """The requests that are the candidate's while `current` may answer the others: no rule means `previous` for them."""
        return self.requests if self.current is not None and self.refuge == self.current else None


class StoredDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted assignment: its envelope as it came, and its order, which never decreases.

    Of a region that the device has left the envelope is in the end empty: only the order is remembered.
    """

    scope: str
    pipeline: str
    epoch: int
    seq: int
    payload_digest: str
    envelope: bytes


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `incarnation` is random per state directory; no report had `number` yet, nor one above it.

    `boots` counts the agent's starts, and `boot` is the machine's at the last of them. A gateway process (`gateway`, random)
    numbers its windows from nothing; ours go on from `windows_from`, and none was `windows_next` yet: a window's number is
    reported once, whatever restarts. `damaged` are releases and environments of slots whose bytes
    on this disk do not verify.
    """

    format: int = FORMAT
    incarnation: str
    number: int = 0
    boots: int = 0
    boot: str = ""
    gateway: str = ""
    windows_from: int = 0
    windows_next: int = 0
    pipelines: dict[str, PipelineRecord] = {}
    documents: tuple[StoredDocument, ...] = ()
    damaged: tuple[str, ...] = ()

    def pipeline(self, name: str) -> PipelineRecord:
        return self.pipelines.get(name) or PipelineRecord()


def encode(record: Record) -> bytes:
    return strict_json.encode(record)


def decode(raw: bytes) -> Record:
    """The record in the bytes of a doubled file. Raises Malformed: a future format is refused, not guessed at."""
    return strict_json.decode(raw, Record, what="record", size_bytes_max=SIZE_BYTES_MAX, depth_max=12)
