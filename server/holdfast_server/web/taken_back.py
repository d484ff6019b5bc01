"""What was taken back and why: people's rollbacks, and rollouts that a breached gate halted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from holdfast_server.web import words

SHOWN_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`authority` is `automatic` or `manual`; `back` of `before` devices have returned, where that is known. `environment`
    says in words which one was left, where the release was not.
    """

    id: str
    pipeline: str
    version: str
    to: str
    environment: str
    segment: str
    why: str
    authority: str
    state: str
    who: str
    at: int | None
    back: int | None
    before: int | None

    @property
    def reach(self) -> float:
        return round(100 * (self.back or 0) / self.before, 2) if self.before else 0.0


def draw(rollbacks: Any, rollouts: Any) -> list[Entry]:
    """The newest first."""
    entries = [_rollback(one) for one in rollbacks["rollbacks"]]
    entries += [_halt(one) for one in rollouts["rollouts"] if one["state"] == "halted"]
    return sorted(entries, key=lambda entry: -(entry.at or 0))[:SHOWN_MAX]


def _rollback(one: Any) -> Entry:
    approved = f", approved by {one['approved_by']}" if one.get("approved_by") else ""
    return Entry(
        id=one["id"],
        pipeline=one["pipeline"],
        version=words.version_of(one.get("version") or one.get("release")),
        to=words.version_of(one.get("to")),
        environment=_environment(one),
        segment=words.segment(one["segment"]),
        why=one["reason"],
        authority="manual",
        state=one["state"],
        who=f"asked for by {one['requested_by']}{approved}",
        at=_at(one, "accepted_at", "at", "requested_at"),
        back=one.get("devices_back"),
        before=one.get("devices_before"),
    )


def _environment(one: Any) -> str:
    if not one.get("environment"):
        return ""
    left = f"environment {words.digest(one['environment'])} → {words.digest(one.get('to_environment'))}"
    others = ", ".join(other["version"] for other in one.get("also", ()))
    if not one.get("every_version"):
        return left
    return f"{left}, left by every version" + (f": also by {others}" if others else "")


def _halt(one: Any) -> Entry:
    return Entry(
        id=one["id"],
        pipeline=one["pipeline"],
        version=words.version_of(one["release"]),
        to=words.version_of(one.get("previous")),
        environment="",
        segment=words.segment(one["segment"]),
        why=one.get("cause") or "",
        authority="automatic",
        state="halted",
        who="by a gate, without anybody asked",
        at=_at(one, "halted_at", "ended_at"),
        back=one.get("devices_back"),
        before=one.get("devices_before"),
    )


def _at(one: Any, *names: str) -> int | None:
    return next((one[name] for name in names if isinstance(one.get(name), int)), None)
