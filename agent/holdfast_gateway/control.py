"""What the agent and the gateway say over the control socket: one JSON object a line, each way.

Level-triggered: the agent sends the whole of what should be (`Routes`), as often as it likes; the gateway converges and says
what is (`Status`). Neither needs to remember the other: a restarted agent sends `Routes` again, a restarted gateway reads
the record. Windows are handed over by number: the gateway keeps a closed window until the agent acknowledges it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.report import Isolation, Window

LINE_BYTES_MAX: Final = 1024 * 1024
# Closed windows that no agent has acknowledged; while there are so many, none is closed, and the open ones go on growing.
WINDOWS_KEPT_MAX: Final = 64

SlotState = Literal["loading", "ready", "failed", "stopped"]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What should be for one pipeline. `testing` is loaded and self-tested, and gets no request; `shadow` is asked what
    `serving` has answered, and answers nobody.

    `requests`: only these are given to `serving`, and all others to `refuge`; without a refuge it answers all.
    """

    pipeline: str
    serving: Target | None = None
    refuge: Target | None = None
    testing: Target | None = None
    shadow: Target | None = None
    requests: Requests | None = None


class Routes(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="routes"):
    """All pipelines; one that is not named is removed. `serial` comes back in the first Status after it is in force."""

    serial: int
    routes: tuple[Route, ...]


class RetryLoad(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="retry-load"):
    """Forget that this target's worker failed, and start it again."""

    target: str


class CloseWindows(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="close-windows"):
    """Close every window that holds anything, and send them with `Windows`."""


class AcknowledgeWindows(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="acknowledge-windows"):
    """The agent has these on its own disk; the gateway may forget them."""

    windows: tuple[int, ...]


ToGateway = Routes | RetryLoad | CloseWindows | AcknowledgeWindows


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker. `code` is a stable failure code: why it failed for good, or what it lacks; else how it was last lost.

    `losses` counts crashes and hangs since it was loaded; `loads` how often its worker was started.
    """

    pipeline: str
    target: Target
    state: SlotState
    code: str = ""
    detail: str = ""
    losses: int = 0
    loads: int = 0
    worker_pid: int = 0


class Shadowing(msgspec.Struct, frozen=True, kw_only=True):
    """A release that shadows, for whoever asks on the device itself. Counts are of this gateway's life; `compared` and `agreed`
    are rows.
    """

    name: str
    version: str
    state: SlotState
    detail: str = ""
    requests: int = 0
    dropped: int = 0
    compared: int = 0
    agreed: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="status"):
    """What is: sent at every change, and on connect. `serial` is that of the Routes in force (0: from the record)."""

    serial: int
    slots: tuple[SlotStatus, ...]
    gateway: str  # random per gateway process: its window numbers and tallies start again with it
    runtime: dict[str, str] = {}  # the environment fingerprint that a worker measured
    isolation: Isolation | None = None  # what is true of every worker
    shadows: tuple[SlotStatus, ...] = ()  # workers of their own, whatever slots hold the same target


class Tallied(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="tallied"):
    """Counts of one slot over the last `window_s`, sent at every failure at most every 20 ms, and else once a second.

    `first_bad_monotonic_us` is when the first error, hang or null in them was seen (CLOCK_MONOTONIC).
    """

    pipeline: str
    target: Target
    window: Window
    first_bad_monotonic_us: int | None = None


class Windows(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="windows"):
    """Closed windows, each until it is acknowledged."""

    windows: tuple[Window, ...]


class Switched(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="switched"):
    """The first good answer of a slot since it began to serve: when a fallback or a rollback was felt by an application."""

    pipeline: str
    target: Target
    at_monotonic_us: int


FromGateway = Status | Tallied | Windows | Switched

_to_gateway: Final[msgspec.json.Decoder[ToGateway]] = msgspec.json.Decoder(ToGateway)
_from_gateway: Final[msgspec.json.Decoder[FromGateway]] = msgspec.json.Decoder(FromGateway)


def encode(message: ToGateway | FromGateway) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_to_gateway(line: bytes) -> ToGateway:
    """Raises msgspec.DecodeError: the two processes are of different versions."""
    return _to_gateway.decode(line)


def decode_from_gateway(line: bytes) -> FromGateway:
    """Raises msgspec.DecodeError: the two processes are of different versions."""
    return _from_gateway.decode(line)
