"""The lives of a device in which the power is cut: each begins with what the ones before it left on the disk."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import zstandard

from holdfast_agent.core.record import PipelineRecord, State
from holdfast_shared import strict_json
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.assignment import Assignment, Condemned, ReleaseRef, Rule
from holdfast_shared.wire.release import Guardrail, Trial
from holdfast_shared.wire.transfers import Transfer, Transfers
from support import playbook
from support.hostile_server import HostileServer, honest, status
from support.installed_release import Published
from support.powered_device import PIPELINE, Goal, Phase
from support.published import Making, publish

NULLS: Final = Guardrail(metric="null_rate", threshold=0.01, action="fall_back", requests_min=5, window_s=30)
# Several pieces each, when a piece is PIECE_BYTES.
SIZE_BYTES: Final = 2_500
PIECE_BYTES: Final = 1_024
# The last one is fetched compressed: a part of a form, the form, a part of the blob that is made of it.
FEW_VALUES: Final = bytes(random.Random(4).choices((0, 1, 2, 3), k=5_000))
ONE, TWO, THREE, FOUR = (
    publish(
        version,
        Making(
            size_bytes=SIZE_BYTES,
            weights=FEW_VALUES if version == "4.0.0" else b"",
            release={"guardrails": (NULLS,), "trial": Trial(soak_s=5, requests_min=10)},
        ),
    )
    for version in ("1.0.0", "2.0.0", "3.0.0", "4.0.0")
)
RELEASES: Final = (ONE, TWO, THREE, FOUR)


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    phases: tuple[Phase, ...]


def serve_all(server: HostileServer) -> None:
    for one in RELEASES:
        for digest, envelope in one.manifests.items():
            server.on(f"/api/v1/manifests/{digest}", honest(envelope))
        for digest, blob in one.blobs.items():
            server.on(f"/api/v1/blobs/{digest}", honest(blob))
    short = zstandard.compress(FEW_VALUES)
    offered = Transfer(codec="zstd", digest=digest_of(short), size_bytes=len(short))
    index = strict_json.encode(Transfers(blob=FOUR.weights, transfers=(offered,)))
    server.on(f"/api/v1/blobs/{FOUR.weights}/transfers", status(200, index))
    server.on(f"/api/v1/blobs/{offered.digest}", honest(short))
    server.on(f"/api/v1/blobs/{FOUR.weights}", status(404))  # it must come compressed


def _ref(one: Published) -> ReleaseRef:
    return ReleaseRef(version=one.release.version, digest=one.digest)


def _rule(one: Published, standby: Published | None = None) -> Rule:
    return Rule(mode="serve", release=_ref(one), standby=_ref(standby) if standby is not None else None)


def _says(seq: int, *rules: Rule, condemned: tuple[Condemned, ...] = ()) -> Assignment:
    return playbook.assignment(*rules, seq=seq, pipeline=PIPELINE, condemned=condemned)


def _at(current: Published, previous: Published | None) -> Goal:
    def reached(pipeline: PipelineRecord) -> bool:
        found = [slot.release.digest if slot is not None else "" for slot in (pipeline.current, pipeline.previous)]
        return pipeline.state is State.IDLE and found == [current.digest, previous.digest if previous else ""]

    return reached


SCENARIOS: Final = (
    Scenario("first install", (Phase(_says(1, _rule(ONE)), _at(ONE, None)),)),
    Scenario("switch, trial, commit", (Phase(_says(2, _rule(TWO)), _at(TWO, ONE)),)),
    Scenario(
        "fallback and refill",
        (
            Phase(
                _says(3, _rule(TWO), _rule(ONE, standby=THREE)), _at(ONE, THREE), null_answers=frozenset({TWO.digest})
            ),
        ),
    ),
    Scenario("update, and garbage collected", (Phase(_says(4, _rule(FOUR)), _at(FOUR, ONE)),)),
    Scenario(
        "rollback by a document, and refill",
        (
            Phase(
                _says(5, _rule(ONE, standby=THREE), condemned=(Condemned(release=_ref(FOUR), incident="i-1"),)),
                _at(ONE, THREE),
            ),
        ),
    ),
    Scenario("reports, past their reserved numbers", (Phase(None, lambda _: True, reports=70),)),
)
