"""When nothing else can answer, a slot that had failed is tried again, also without an agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.pipeline import LAST_RESORT_S, Pipeline
from holdfast_gateway.windows import Ledger
from support.gateway_bench import PIPELINE, STAND_IN, installed
from support.pipeline_alone import Quiet, until


@pytest.mark.slow
def test_a_failed_slot_is_tried_again_only_when_there_is_no_other(tmp_path: Path) -> None:
    asyncio.run(_last_resort(StateFolder(tmp_path)))


async def _last_resort(folder: StateFolder) -> None:
    bench = Bench(folder, STAND_IN)
    good, bad = installed(folder, "1.0.0"), installed(folder, "1.1.0", load="fail:load-failed")

    served = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    served.route(Route(pipeline=PIPELINE, serving=bad, refuge=good))
    slot = served.slots[bad.key]
    await until(lambda: slot.state == "failed" and bool(served.usable))
    slot.failed_at -= LAST_RESORT_S
    served.tick()
    assert slot.loads == 1  # the refuge answers

    alone = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    alone.route(Route(pipeline=PIPELINE, serving=bad))
    slot = alone.slots[bad.key]
    await until(lambda: slot.state == "failed")
    alone.tick()
    assert slot.loads == 1  # too soon
    slot.failed_at -= LAST_RESORT_S
    alone.tick()
    assert slot.loads == 2
    for pipeline in (served, alone):
        pipeline.retire()
    await until(lambda: served.empty and alone.empty and all(worker.gone for worker in bench.workers))
