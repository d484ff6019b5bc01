"""What can happen to a device, as values. The loop makes them of what the world does; `step` decides what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast_gateway.control import FromGateway
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Now: wall time in µs since 1970, which may jump, and CLOCK_MONOTONIC in µs, which does not. Waiting uses the second."""

    at: int
    monotonic_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentReceived:
    """An assignment's envelope. `scope` (`region/<name>` or `device/<id>`) and `pipeline` are what its topic or URL claims."""

    scope: str
    pipeline: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class GatewayConnected:
    """The control socket is open: from now on the gateway hears what it is told."""


@dataclass(frozen=True, slots=True)
class GatewayGone:
    """The control socket is closed. The gateway may well go on serving."""


@dataclass(frozen=True, slots=True)
class GatewaySaid:
    message: FromGateway


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnded:
    """A fetch is over. `release` is its verified manifest when `ok`; `draw` a number drawn from [0, 1) for the backoff."""

    pipeline: str
    target: Target
    ok: bool
    draw: float
    code: str = ""
    detail: str = ""
    release: Release | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackAsked:
    """Somebody on the device itself wants `target` left, which they saw serving. Something else serves by now: too late."""

    pipeline: str
    target: Target
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsVerified:
    """The slots' bytes were read: releases and environments that are whole, and those that are not.

    `unreadable` are in neither: the system refused to read them, again and again, and this is what it said. `draw` from [0, 1)
    spreads the next time.
    """

    whole: frozenset[str]
    damaged: frozenset[str]
    draw: float
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpoolFailed:
    """The report with this number is not on disk: its windows stay with the gateway, and are reported again."""

    number: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


Event = (
    DocumentReceived
    | GatewayConnected
    | GatewayGone
    | GatewaySaid
    | FetchEnded
    | RollbackAsked
    | SlotsVerified
    | SpoolFailed
    | Tick
)
