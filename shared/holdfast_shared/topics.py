"""The MQTT topics of a fleet. Names are checked where documents are parsed, so none holds `/`, `+` or `#`."""

from __future__ import annotations

from typing import NamedTuple


def region_assignment(fleet: str, region: str, pipeline: str) -> str:
    """Retained, server → devices of a region. An empty payload means nothing."""
    return f"holdfast/{fleet}/region/{region}/assignment/{pipeline}"


def device_assignment(fleet: str, device: str, pipeline: str) -> str:
    """Retained, server → one device."""
    return f"holdfast/{fleet}/device/{device}/assignment/{pipeline}"


def health(fleet: str, device: str) -> str:
    """QoS 1, device → server: signed health reports. `+` for the server's subscription."""
    return f"holdfast/{fleet}/device/{device}/health"


def event(fleet: str, device: str) -> str:
    """QoS 1, device → server: signed event reports."""
    return f"holdfast/{fleet}/device/{device}/event"


def presence(fleet: str, device: str) -> str:
    """Retained, with a last will: `online` or `offline`. A hint, never evidence."""
    return f"holdfast/{fleet}/device/{device}/presence"


def command(fleet: str, verb: str) -> str:
    """An operator's signed request, answered on its MQTT 5 response topic."""
    return f"holdfast/{fleet}/command/{verb}"


class Parsed(NamedTuple):
    """`kind` is assignment, health, event, presence or command; `subject` the region, device or verb it is about."""

    scope: str
    subject: str
    kind: str
    pipeline: str


def parse(fleet: str, topic: str) -> Parsed | None:
    """What a topic of this fleet is about, or None when it is none of ours."""
    match topic.split("/"):
        case ["holdfast", name, ("region" | "device") as scope, subject, "assignment", pipeline] if name == fleet:
            return Parsed(scope, subject, "assignment", pipeline)
        case ["holdfast", name, "device", subject, ("health" | "event" | "presence") as kind] if name == fleet:
            return Parsed("device", subject, kind, "")
        case ["holdfast", name, "command", verb] if name == fleet:
            return Parsed("fleet", verb, "command", "")
        case _:
            return None
