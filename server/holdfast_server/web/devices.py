"""One device, and lists of them: what it is, what lies in its slots, what it condemned, what it is expected to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from holdfast_server.web.releases import Colours, colour
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT

SLOTS: Final = ("current", "previous", "candidate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """`serves`: it answers requests now; `answers`: which, where two slots do. `environment` is empty for the device's own."""

    name: str
    version: str
    digest: str
    environment: str
    colour: str
    serves: bool
    answers: str
    ready: bool
    unproven: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    name: str
    state: str
    serving: str
    colour: str
    marks: tuple[str, ...]
    slots: tuple[Slot, ...]
    condemned: tuple[Any, ...]
    expected: str
    expected_colour: str
    why: str
    unfit: str
    waiting_for: str
    shadow: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How the device's workers are confined, as it says."""

    applied: tuple[tuple[str, str], ...]
    degraded: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    id: str
    region: str
    labels: tuple[tuple[str, str], ...]
    stage: str
    online: bool
    last_seen_at: int | None
    agent_version: str
    isolation: Isolation | None
    membership: int | None
    pipelines: tuple[Pipeline, ...]


def draw(found: Any, colours: Colours) -> Device:
    return Device(
        id=found["device"],
        region=found["region"],
        labels=tuple(sorted((found.get("labels") or {}).items())),
        stage=found.get("stage") or "",
        online=bool(found.get("online")),
        last_seen_at=found.get("last_seen_at"),
        agent_version=found.get("agent_version") or "",
        isolation=_isolation(found.get("isolation")),
        membership=found.get("counter"),
        pipelines=tuple(_pipeline(one, colours) for one in found.get("pipelines") or ()),
    )


def rows(found: list[Any], colours: Colours) -> list[Device]:
    return [draw(one, colours) for one in found]


def _isolation(told: Any) -> Isolation | None:
    if not told:
        return None
    applied, degraded = (tuple(sorted((told.get(one) or {}).items())) for one in ("applied", "degraded"))
    return Isolation(applied=applied, degraded=degraded)


def _pipeline(one: Any, colours: Colours) -> Pipeline:
    name = one["pipeline"]
    serving = one.get("serving") or {}
    expected = one.get("prediction") or {}
    target = expected.get("serve") or {}
    return Pipeline(
        name=name,
        state=one.get("state") or "idle",
        serving=serving.get("version") or "",
        colour=colour(colours, name, serving.get("version")),
        marks=tuple(word for word in ("single", "degraded") if one.get(word)),
        slots=tuple(_slot(slot, one, name, colours) for slot in SLOTS),
        condemned=tuple(one.get("condemned_here") or ()),
        expected=target.get("version") or "",
        expected_colour=colour(colours, name, target.get("version")),
        why=expected.get("reason") or "",
        unfit=expected.get("unfit") or "",
        waiting_for=one.get("waiting_for") or "",
        shadow=_shadow(one.get("shadow")),
    )


def _shadow(told: Any) -> str:
    """How what shadows there agrees with what serves, in words; empty: nothing shadows."""
    if not told:
        return ""
    if not told["compared"]:
        return "nothing compared yet"
    return f"agrees on {100 * told['agreement']:.2f} % of {told['compared']} rows in {told['hours_asked']} h"


def _slot(slot: str, reported: Any, name: str, colours: Colours) -> Slot:
    held, serving = reported.get(slot) or {}, reported.get("serving") or {}
    first = bool(held) and all(held.get(part) == serving.get(part) for part in ("digest", "environment"))
    share = (reported.get("requests") or {}).get("in_words") or ""
    others = bool(share) and slot == "current" and bool(held.get("ready")) and not first
    return Slot(
        name=slot,
        version=held.get("version") or "",
        digest=held.get("digest") or "",
        environment="" if held.get("environment") in (None, SYSTEM_ENVIRONMENT) else held["environment"],
        colour=colour(colours, name, held.get("version")),
        serves=first or others,
        answers="the others" if others else share if first else "",
        ready=bool(held.get("ready")),
        unproven=bool(held.get("unproven")),
    )
