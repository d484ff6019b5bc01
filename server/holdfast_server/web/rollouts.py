"""Rollouts as pictures: a track of waves, each with its cohort, its chance to see a defect, and its gates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from holdfast_server.web import words
from holdfast_server.web.releases import Colours, colour

# Older ones are in `holdfast rollout status`.
SHOWN_MAX: Final = 12
ACTIVE: Final = ("running", "paused", "planned")
MARKS: Final = {"pass": "✓", "fail": "✗", "insufficient": "…"}
_BUCKETS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    name: str
    threshold: str
    verdict: str
    mark: str
    counts: tuple[tuple[str, int], ...]
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """`requests` are those that it gives, in words; empty: all.

    `reach` is the cohort's share of the segment in per cent; `seen` pairs a defect's share with the chance to see it.
    """

    number: int
    where: str
    asked: str
    requests: str
    reach: float
    cohort: int
    seen: tuple[tuple[str, float], ...]
    state: str
    released_at: int | None
    passed_at: int | None
    gates: tuple[Gate, ...]

    @property
    def reach_text(self) -> str:
        return f"{self.reach:g} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    id: str
    pipeline: str
    version: str
    colour: str
    previous: str
    shadows: bool
    segment: str
    state: str
    cause: str
    active: bool
    ended_at: int | None
    passed: int
    waves: tuple[Wave, ...]
    notes: tuple[str, ...]

    @property
    def shown(self) -> tuple[Wave, ...]:
        """All waves while it runs; once it ended, those that were released."""
        return self.waves if self.active else tuple(wave for wave in self.waves if wave.state != "waiting")

    @property
    def unreleased(self) -> int:
        return len(self.waves) - len(self.shown)


def draw(found: Any, colours: Colours) -> list[Rollout]:
    """Active ones first, then the newest; the API gives the newest first."""
    drawn = [_rollout(one, colours) for one in found["rollouts"]]
    return sorted(drawn, key=lambda rollout: not rollout.active)[:SHOWN_MAX]


def _rollout(one: Any, colours: Colours) -> Rollout:
    version = one["release"]["version"]
    return Rollout(
        id=one["id"],
        pipeline=one["pipeline"],
        version=version,
        colour=colour(colours, one["pipeline"], version),
        previous=words.version_of(one.get("previous")),
        shadows=bool(one.get("shadow")),
        segment=words.segment(one["segment"]),
        state=one["state"],
        cause=one.get("cause") or "",
        active=one["state"] in ACTIVE,
        ended_at=one.get("halted_at") or one.get("ended_at"),
        passed=sum(wave["state"] == "passed" for wave in one["waves"]),
        waves=tuple(_wave(wave) for wave in one["waves"]),
        notes=tuple(one.get("notes") or ()),
    )


def _wave(wave: Any) -> Wave:
    labels = [f"{name}={value}" for name, value in sorted((wave.get("labels") or {}).items())]
    return Wave(
        number=wave["number"],
        where=", ".join([*labels, *(wave.get("regions") or ())]) or "all regions",
        asked=f"{wave['share'] / 100:g} %",
        requests=(wave.get("requests") or {}).get("in_words") or "",
        reach=round(100 * (wave.get("real_share") or 0) / _BUCKETS, 2),
        cohort=wave.get("cohort") or 0,
        seen=tuple((wave.get("defect_seen") or {}).items()),
        state=wave["state"],
        released_at=wave.get("released_at"),
        passed_at=wave.get("passed_at"),
        gates=tuple(_gate(gate) for gate in wave.get("gates") or ()),
    )


def _gate(gate: Any) -> Gate:
    verdict = gate["verdict"]
    counts = gate.get("devices") or {}
    return Gate(
        name=words.METRICS.get(gate["metric"], gate["metric"]),
        threshold=words.threshold(gate["metric"], gate.get("threshold")),
        verdict=verdict,
        mark=MARKS.get(verdict, "?"),
        counts=tuple((word, counts.get(word, 0)) for word in MARKS),
        evidence=json.dumps(gate["evidence"], ensure_ascii=False) if gate.get("evidence") else "",
    )
