"""What a gateway and a worker say to each other: frames over a stream socket, and the version of both.

A worker of another environment may be older or newer than the gateway: the first thing a worker sends is `Hello` with its
versions, and the gateway names in `Load` the newest that both speak. All integers big-endian:

    frame     = length u32 (of what follows) ‖ kind u8 ‖ body
    control   = JSON of one of the types below                                                       (kinds HELLO … STOP)
    ask       = id u64 ‖ wants_binary u8 ‖ header_length u32 ‖ body of the HTTP request              (kind ASK)
    measured  = JSON array of `Measured`, about the answer that follows, where LOAD asked for it     (kind MEASURED)
    answer    = id u64 ‖ outcome u8 ‖ header_length u32 ‖ compute_us u32 ‖ body of the HTTP response (kind ANSWER)
    compare   = id u64 ‖ header_length u32 ‖ answer's header_length u32 ‖ request's bytes u32
                ‖ body of the HTTP request ‖ body of the HTTP response that the serving release gave (kind COMPARE)
    compared  = JSON array of `Compared`                                                             (kind COMPARED)

`header_length` is the `Inference-Header-Content-Length` of the binary tensor extension, or NO_HEADER when the whole body is
JSON. A body goes through as it came: the gateway never needs numpy, and a request that one slot could not answer is sent to
the other as the same bytes. A worker answers in the order it was asked, so a gateway may ask ahead, and the oldest
unanswered request is the one that a crash or a hang belongs to.

Version 2 has `threads` in `Load`; a worker of version 1 reads past it. It reads past `measures` too, and measures nothing.
Version 3 has COMPARE, in ASK's place and order: a release that shadows is asked nothing else. An older worker cannot shadow.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, Final, NamedTuple

import msgspec

from holdfast_shared.wire.release import Tensor
from holdfast_shared.wire.report import (
    DIFFERENCE_BINS,
    DRIFT_BINS_MAX,
    DRIFT_FEATURES_MAX,
    LABELS_MAX,
    SCORE_BINS,
    Isolation,
)

VERSION: Final = 3
# The first with COMPARE.
COMPARES: Final = 3
# The oldest that this code still speaks, on either side.
OLDEST: Final = 1
# A length, then what it counts. A larger frame is a peer that lost its place in the stream.
LENGTH: Final = struct.Struct(">I")
FRAME_BYTES_MAX: Final = 1024**3 + 64
NO_HEADER: Final = 0xFFFFFFFF
# In a fingerprint, between what two runtimes say of themselves.
FINGERPRINT_BETWEEN: Final = "; "
# Length and kind go with the head, so that a frame leaves in one write: head ‖ body.
ASK_HEAD: Final = struct.Struct(">IBQBI")
ANSWER_HEAD: Final = struct.Struct(">IBQBII")
COMPARE_HEAD: Final = struct.Struct(">IBQIII")


# Threads of one worker: a few for its runtime, and some that libraries start without being asked.
TASKS_MAX: Final = 64


class Kind(IntEnum):
    HELLO = 1  # worker: its version, once, before anything else
    LOAD = 2  # gateway: what to load, once
    READY = 3  # worker: loaded, self-tested and warm
    FAILED = 4  # worker: it could not; it exits afterwards
    STOP = 5  # gateway: answer what was asked, then exit
    ASK = 6
    ANSWER = 7
    MEASURED = 8  # worker: what it measured of the answer that follows; only where LOAD asked for it
    COMPARE = 9  # gateway: a request, and what the serving release answered
    COMPARED = 10  # worker: how its own answer compares


class Outcome(IntEnum):
    """What became of one request. Only OK and NULL have outputs in their body; the others have `{"error": …}`."""

    OK = 0
    NULL = 1  # an output is missing, empty, not finite, or the declared sentinel: the body has the outputs all the same
    INPUT_FAULT = 2  # the request's own fault (HTTP 400): no other slot would answer it
    ERROR = 3  # the model raised


_OUTCOMES: Final = tuple(Outcome)  # by number: a call of the enum takes longer than the rest of an answer's head
_ASK: Final = int(Kind.ASK)
_ANSWER: Final = int(Kind.ANSWER)


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The worker speaks the versions from `oldest` to `version`; without `oldest`, as version 1 was, only the one."""

    version: int
    pid: int
    oldest: int | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to load: a release by the digest of its manifest, and the folders to read it from (by digest, verified).

    `version` is the protocol's, as agreed; `threads` what one inference may use.
    """

    pipeline: str
    release: str
    environment: str
    manifests: str
    blobs: str
    version: int = 1
    threads: int = 1
    # What the gateway did to confine this process from outside, by protection, and what the worker is not to apply itself. A
    # gateway that does not say applies nothing and wants everything.
    isolated: dict[str, str] = {}
    isolation_off: tuple[str, ...] = ()
    tasks_max: int = TASKS_MAX
    nice: int = 0
    measures: bool = False  # this gateway knows MEASURED
    shadows: bool = False  # it will be asked COMPARE, and never ASK; only of a worker whose version has it
    unreadable: bool = False  # this gateway knows that code of FAILED
    accelerators: tuple[str, ...] = ()  # what the device says that it has
    delegates: dict[str, str] = {}  # libraries by accelerator, for TFLite


_Rows: Final = msgspec.Meta(max_length=LABELS_MAX)
_ScoreBin = Annotated[int, msgspec.Meta(ge=0, lt=SCORE_BINS)]
_DriftBin = Annotated[int, msgspec.Meta(ge=0, lt=DRIFT_BINS_MAX)]


class MeasuringFeature(msgspec.Struct, frozen=True, kw_only=True):
    """A feature of the release's reference, and how the publisher's sample fell into its bins."""

    name: str
    expected: tuple[int, ...]


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """What will be measured of every good answer."""

    scores: bool = False
    features: tuple[MeasuringFeature, ...] = ()


class Measured(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of one good answer, row by row. `request` is its id or empty; `classes` are those of the largest score; `confidence` and
    `margin` are bins of 0…1; `drift` has each feature's bins, in the order of `Measuring`.
    """

    request: str = ""
    classes: Annotated[tuple[int, ...], _Rows] = ()
    confidence: Annotated[tuple[_ScoreBin, ...], _Rows] = ()
    margin: Annotated[tuple[_ScoreBin, ...], _Rows] = ()
    drift: Annotated[
        tuple[Annotated[tuple[_DriftBin, ...], _Rows], ...], msgspec.Meta(max_length=DRIFT_FEATURES_MAX)
    ] = ()


class Compared(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a shadow made of one request. `rows` is 0 where there is nothing to compare: no answer that is OK (`outcome`), or
    two answers that have not the same outputs. The bins are those of `ShadowCounts`, row by row.
    """

    id: int
    outcome: Outcome
    compute_us: Annotated[int, msgspec.Meta(ge=0)]
    rows: Annotated[int, msgspec.Meta(ge=0)] = 0
    agreed: Annotated[int, msgspec.Meta(ge=0)] = 0
    difference: Annotated[int, msgspec.Meta(ge=0, lt=DIFFERENCE_BINS)] = 0
    confidence: Annotated[tuple[_ScoreBin, ...], _Rows] = ()
    margin: Annotated[tuple[_ScoreBin, ...], _Rows] = ()
    serving_confidence: Annotated[tuple[_ScoreBin, ...], _Rows] = ()
    serving_margin: Annotated[tuple[_ScoreBin, ...], _Rows] = ()


# A few words of each of a few things: it is a part of every status and report.
FINGERPRINT_MAX: Final = 32
_Name = Annotated[str, msgspec.Meta(max_length=64)]
_Words = Annotated[str, msgspec.Meta(max_length=1024)]


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """`inputs` and `outputs` are the release's tensors; `fingerprint` what the environment measures of itself."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    fingerprint: Annotated[dict[_Name, _Words], msgspec.Meta(max_length=FINGERPRINT_MAX)]
    load_ms: float
    self_test_cases: int
    isolation: Isolation | None = None  # what it told of; a worker of an older version has no word for it
    measuring: Measuring | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A stable failure code, of `failures.LoadCode` for now, and what was seen."""

    code: str
    detail: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Ask(NamedTuple):
    id: int
    wants_binary: bool
    header_length: int
    body: memoryview


class Answer(NamedTuple):
    id: int
    outcome: Outcome
    header_length: int
    compute_us: int
    body: memoryview
    measured: Measured | None = None  # told by a frame of its own, before


class Compare(NamedTuple):
    id: int
    request_header_length: int
    answer_header_length: int
    request: memoryview
    answer: memoryview


def agreed(oldest: int, newest: int) -> int | None:
    """The newest version that this code and a peer that speaks `oldest` to `newest` both speak; None: there is none."""
    found = min(VERSION, newest)
    return found if found >= max(OLDEST, oldest) else None


def control(kind: Kind, message: Hello | Load | Ready | Failed | Stop | Measured | Compared) -> bytes:
    """A control frame."""
    body = msgspec.json.encode(message)
    return LENGTH.pack(1 + len(body)) + bytes([kind]) + body


def ask_head(request: int, *, wants_binary: bool, header_length: int, body_bytes: int) -> bytes:
    """What goes before the request's body."""
    return ASK_HEAD.pack(ASK_HEAD.size - LENGTH.size + body_bytes, _ASK, request, wants_binary, header_length)


def answer_head(request: int, outcome: Outcome, *, header_length: int, compute_us: int, body_bytes: int) -> bytes:
    """What goes before the response's body."""
    return ANSWER_HEAD.pack(
        ANSWER_HEAD.size - LENGTH.size + body_bytes, _ANSWER, request, outcome, header_length, compute_us
    )


def compare_head(
    request: int, *, request_header_length: int, answer_header_length: int, request_bytes: int, answer_bytes: int
) -> bytes:
    """What goes before the request's body and, behind it, the answer's."""
    length = COMPARE_HEAD.size - LENGTH.size + request_bytes + answer_bytes
    lengths = (request_header_length, answer_header_length, request_bytes)
    return COMPARE_HEAD.pack(length, Kind.COMPARE, request, *lengths)


def read_compare(frame: memoryview) -> Compare:
    """From a whole frame, its length included. Raises ValueError where it holds less than it says."""
    _, _, number, request_header_length, answer_header_length, size = COMPARE_HEAD.unpack_from(frame)
    end = COMPARE_HEAD.size + size
    if end > len(frame):
        raise ValueError(f"a request of {size} bytes in a frame of {len(frame)}")
    return Compare(number, request_header_length, answer_header_length, frame[COMPARE_HEAD.size : end], frame[end:])


def decode_compared(frame: memoryview) -> Compared:
    """From a whole frame, its length included. Raises msgspec.DecodeError."""
    return msgspec.json.decode(frame[LENGTH.size + 1 :], type=Compared)


def read_ask(frame: memoryview) -> Ask:
    """From a whole frame, its length included."""
    _, _, request, wants_binary, header_length = ASK_HEAD.unpack_from(frame)
    return Ask(request, bool(wants_binary), header_length, frame[ASK_HEAD.size :])


def read_answer(frame: memoryview) -> Answer:
    """From a whole frame, its length included. Raises ValueError for an outcome that there is not."""
    _, _, request, outcome, header_length, compute_us = ANSWER_HEAD.unpack_from(frame)
    if outcome >= len(_OUTCOMES):
        raise ValueError(f"an answer of outcome {outcome}")
    return Answer(request, _OUTCOMES[outcome], header_length, compute_us, frame[ANSWER_HEAD.size :])
