"""A slot that is left has a time to answer what it was asked, lingers for a moment, and ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import slot as slots
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.inference import Inference
from holdfast_gateway.pipeline import Pipeline
from holdfast_gateway.windows import Ledger
from holdfast_shared.wire.release import Limits
from holdfast_worker.protocol import NO_HEADER
from support.gateway_bench import PIPELINE, STAND_IN, installed
from support.pipeline_alone import Quiet, Waiting, until

LONG = Limits(deadline_ms=600_000, load_deadline_s=20)


@pytest.mark.slow
def test_what_never_ends_is_ended_and_asked_of_the_slot_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "DRAIN_S", 0.3)
    asyncio.run(_drained(StateFolder(tmp_path)))


async def _drained(folder: StateFolder) -> None:
    bench = Bench(folder, STAND_IN)
    old, new = (installed(folder, version, limits=LONG) for version in ("1.0.0", "1.1.0"))
    pipeline = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    pipeline.route(Route(pipeline=PIPELINE, serving=old, testing=new))
    await until(lambda: all(slot.state == "ready" for slot in pipeline.slots.values()))
    asker = Waiting()
    body = json.dumps({"do": {"1.0.0": "slow:600000"}}).encode()
    pipeline.submit(Inference(asker, body, version="", wants_binary=False, header_length=NO_HEADER, since=0.0))
    pipeline.route(Route(pipeline=PIPELINE, serving=new))
    await until(lambda: asker.came is not None)
    assert asker.came == (200, "1.1.0")
    pipeline.retire()
    await until(lambda: pipeline.empty and all(worker.gone for worker in bench.workers))


@pytest.mark.slow
def test_one_with_nothing_to_answer_lingers_and_is_named_again_as_it_was(tmp_path: Path) -> None:
    """Its end would take a core from the slot that has its first requests to answer now."""
    asyncio.run(_lingered(StateFolder(tmp_path)))


async def _lingered(folder: StateFolder) -> None:
    bench = Bench(folder, STAND_IN)
    old, new = (installed(folder, version) for version in ("1.0.0", "1.1.0"))
    pipeline = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    pipeline.route(Route(pipeline=PIPELINE, serving=old, testing=new))
    await until(lambda: all(slot.state == "ready" for slot in pipeline.slots.values()))
    left = pipeline.slots[old.key]
    pipeline.route(Route(pipeline=PIPELINE, serving=new))
    for _ in range(5):
        await asyncio.sleep(0)  # turns of the loop, in which it would be told to stop
    pipeline.route(Route(pipeline=PIPELINE, serving=new, refuge=old))
    assert (pipeline.slots[old.key], left.state, left.loads) == (left, "ready", 1)
    pipeline.route(Route(pipeline=PIPELINE, serving=new))
    await until(lambda: len([worker for worker in bench.workers if not worker.gone]) == 1)
    pipeline.retire()
    await until(lambda: pipeline.empty and all(worker.gone for worker in bench.workers))
