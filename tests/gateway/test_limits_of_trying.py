"""How often one request is handed over, and that a slot that is loaded again starts with a clean sheet."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import LOSSES_MAX, Loss
from holdfast_gateway.pipeline import HAND_OVERS_MAX, Pipeline
from holdfast_gateway.slot import Slot
from holdfast_gateway.windows import Ledger
from holdfast_gateway.worker import Lost
from holdfast_worker.protocol import NO_HEADER
from support.gateway_bench import PIPELINE, STAND_IN, installed
from support.pipeline_alone import Quiet, Waiting, until


@contextlib.asynccontextmanager
async def two_ready_slots(folder: StateFolder) -> AsyncIterator[tuple[Pipeline, Slot]]:
    """And the one that serves."""
    bench = Bench(folder, STAND_IN)
    good, other = (installed(folder, version) for version in ("1.0.0", "1.1.0"))
    pipeline = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    pipeline.route(Route(pipeline=PIPELINE, serving=good, refuge=other))
    await until(lambda: all(slot.state == "ready" for slot in pipeline.slots.values()))
    yield pipeline, pipeline.slots[good.key]
    pipeline.retire()
    await until(lambda: pipeline.empty and all(worker.gone for worker in bench.workers))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "status"), [(HAND_OVERS_MAX - 1, 200), (HAND_OVERS_MAX, 503)])
def test_a_request_that_always_stands_behind_a_culprit_is_not_handed_over_for_ever(
    before: int, status: int, tmp_path: Path
) -> None:
    assert asyncio.run(_behind_once_more(before, StateFolder(tmp_path))) == status


async def _behind_once_more(before: int, folder: StateFolder) -> int:
    async with two_ready_slots(folder) as (pipeline, serving):
        asker = Waiting()
        body = json.dumps({}).encode()
        unlucky = Inference(asker, body, version="", wants_binary=False, header_length=NO_HEADER, since=0.0)
        unlucky.hand_overs = before
        pipeline.lost(serving, Lost(Loss.CRASH, "it was killed", None, 0.0, (unlucky,)))
        await until(lambda: asker.came is not None)
        assert asker.came is not None
        return asker.came[0]


@pytest.mark.slow
def test_a_slot_that_is_loaded_again_is_not_charged_with_what_it_lost_before(tmp_path: Path) -> None:
    asyncio.run(_loaded_again(StateFolder(tmp_path)))


async def _loaded_again(folder: StateFolder) -> None:
    async with two_ready_slots(folder) as (pipeline, serving):
        for _ in range(LOSSES_MAX):
            serving.charge(Loss.CRASH)
        assert (serving.state, serving.code) == ("failed", Loss.CRASH)
        await until(lambda: serving.status().worker_pid == 0)
        pipeline.retry_load(serving.target.key)
        await until(lambda: serving.state == "ready")
        assert (serving.code, serving.status().losses) == ("", 0)
        serving.charge(Loss.CRASH)
        assert serving.state == "ready"
