"""What the device wants done, as values, in the order to do it. Each may be repeated: a restart does."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_agent.core.record import Record
from holdfast_gateway.control import ToGateway
from holdfast_shared.assign import Target
from holdfast_shared.wire.report import Report


@dataclass(frozen=True, slots=True)
class Save:
    """Make the record durable. It is the first command of its step, and if it fails none of the others may be carried out."""

    record: Record


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the gateway. Lost when it is gone: it is told anew when it is back."""

    message: ToGateway


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFetch:
    """Download, verify and stage `target`; there is at most one fetch. `FetchEnded` says how it went.

    `urgent`: what serves is condemned, so a budget may be passed where the device is configured so.
    `from_disk`: the download window is closed, so nothing may be asked of the network; what is on the disk may be all of it.
    """

    pipeline: str
    target: Target
    urgent: bool = False
    from_disk: bool = False


@dataclass(frozen=True, slots=True)
class StopFetch:
    """End the fetch under way; what it has downloaded may stay, and no `FetchEnded` need follow."""


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Delete what none of these releases and environments names. No fetch is under way, and none starts before it is done."""

    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class VerifySlots:
    """Read all bytes of these releases and environments, slowly, beside everything else. `SlotsVerified` says what was found."""

    releases: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """Sign the report and make it durable; only then tell the gateway that it may forget `windows` (its own numbers)."""

    report: Report
    windows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `Tick` at this CLOCK_MONOTONIC µs, if nothing happens before. It replaces the one before it."""

    monotonic_us: int


Command = Save | Tell | StartFetch | StopFetch | CollectGarbage | VerifySlots | Spool | WakeAt
