"""What a director might say next to the device of a simulation, drawn from the world's seed."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from holdfast_agent.core.record import PipelineRecord
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.assignment import Assignment, Condemned, Mode, Requests, Rule
from support.playbook import assignment, bad, ref, retry, rule

NAMES: Final = ("1", "2", "3", "4", "5")
# What releases run in, the device's own most of all.
ENVIRONMENTS: Final = (digest_of(b"one"), digest_of(b"two"))
PLACES: Final = (None, None, *ENVIRONMENTS)


def drawn_document(drawn: random.Random, seq: int, pipeline: PipelineRecord) -> Assignment:
    """What serves is condemned more often than the rest."""
    pick, serving = drawn.choice, pipeline.serving
    served = serving.release if serving is not None else None
    chances = {name: 0.4 if ref(name) == served else 0.08 for name in NAMES}
    modes: list[Mode] = ["serve", "serve", "serve", "keep", "stage", "shadow"]
    rules = [
        msgspec.structs.replace(
            rule(pick(NAMES), pick(modes), standby=pick(("", "", *NAMES)), below=pick((10_000, 10_000, 5_000))),
            environment=pick(PLACES),
            standby_environment=pick(PLACES),
            requests=pick((None, None, None, Requests(share=500), Requests(share=10_000))),
            spread_s=pick((None, None, None, 20)),
        )
        for _ in range(drawn.choice((0, 2, 2, 2, 3, 3, 3, 4)))
    ]
    current = pipeline.current
    if current is not None and drawn.random() < 0.25:  # back to what was, without a word against what is
        rules.insert(0, Rule(mode="serve", release=current.release, environment=current.environment))
    alone = [Condemned(environment=one, incident="e") for one in ENVIRONMENTS if drawn.random() < 0.08]
    pairs = []
    if serving is not None and drawn.random() < 0.15:
        pairs.append(Condemned(release=serving.release, environment=serving.environment, incident="p"))
    return assignment(
        *rules,
        seq=seq,
        condemned=[*(bad(name) for name in NAMES if drawn.random() < chances[name]), *alone, *pairs],
        retries=[retry(name, drawn.randint(0, 3)) for name in NAMES if drawn.random() < 0.1],
    )
