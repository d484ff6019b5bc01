"""A report as rows of the tables. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.wire.report import DriftCounts, Event, Report, ShadowCounts, Window

# A device whose clock was set while a window was open says that it took years. Rates are requests over time: a day at most.
WINDOW_DURATION_MAX_US: Final = 86_400 * 1_000_000


class Measures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a window says besides its counts of requests."""

    labelled: int = 0
    agreed: int = 0
    confidence: tuple[int, ...] = ()
    margin: tuple[int, ...] = ()
    drift: tuple[DriftCounts, ...] = ()
    shadow: ShadowCounts | None = None


def seen(report: Report, now: int) -> dict[str, Any]:
    return {
        "device": report.device,
        "incarnation": report.incarnation,
        "number": report.number,
        "received_at": now,
    }


def windows(report: Report, now: int) -> list[dict[str, Any]]:
    return [_window(report, window, now) for window in report.windows]


def events(report: Report, now: int) -> list[dict[str, Any]]:
    return [_event(report, position, event, now) for position, event in enumerate(report.events)]


def state(report: Report, now: int) -> dict[str, Any]:
    """The newest report as it is kept: its windows and events have tables of their own."""
    kept = msgspec.structs.replace(report, windows=(), events=())
    return {
        "device": report.device,
        "incarnation": report.incarnation,
        "number": report.number,
        "sent_at": report.sent_at,
        "report": strict_json.encode(kept).decode(),
        "last_seen_at": now,
        "presence": "",
    }


def _window(report: Report, window: Window, now: int) -> dict[str, Any]:
    return {
        "device": report.device,
        "incarnation": report.incarnation,
        "pipeline": window.pipeline,
        "window": window.window,
        "release_digest": window.release.digest,
        "environment": window.environment,
        "opened_at": min(max(window.opened_at, window.closed_at - WINDOW_DURATION_MAX_US), window.closed_at),
        "closed_at": window.closed_at,
        "requests": window.requests,
        "errors": window.errors,
        "nulls": window.nulls,
        "hangs": window.hangs,
        "input_faults": window.input_faults,
        "failed_over": window.failed_over,
        "memory_bytes_max": window.memory_bytes_max,
        "latency": strict_json.encode(window.latency).decode(),
        "measures": _measures(window),
        "received_at": now,
    }


def _measures(window: Window) -> str:
    said = Measures(**{name: getattr(window, name) for name in Measures.__struct_fields__})
    return "" if said == Measures() else strict_json.encode(said).decode()


def _event(report: Report, position: int, event: Event, now: int) -> dict[str, Any]:
    return {
        "device": report.device,
        "incarnation": report.incarnation,
        "number": report.number,
        "position": position,
        "kind": event.kind,
        "pipeline": event.pipeline,
        "release_version": event.release.version if event.release is not None else "",
        "release_digest": event.release.digest if event.release is not None else "",
        "environment": event.environment,
        "code": event.code,
        "detail": event.detail,
        "at": event.at,
        "at_monotonic_us": event.at_monotonic_us,
        "began_monotonic_us": event.began_monotonic_us,
        "boot": event.boot,
        "received_at": now,
    }
