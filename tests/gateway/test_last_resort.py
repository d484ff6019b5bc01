"""When nothing else can answer, a slot that had failed is tried again, also without an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.pipeline import LAST_RESORT_S, Pipeline
from holdfast_gateway.slot import Slot
from holdfast_gateway.windows import Ledger
from holdfast_shared.assign import Target
from support.gateway_bench import DEADLINE_S, PIPELINE, STAND_IN, installed


class Quiet:
    """A gateway that nobody listens to."""

    def status_changed(self) -> None: ...

    def failure_counted(self, slot: Slot) -> None: ...

    def switched(self, pipeline: str, target: Target, at_s: float) -> None: ...


@pytest.mark.slow
def test_a_failed_slot_is_tried_again_only_when_there_is_no_other(tmp_path: Path) -> None:
    asyncio.run(_last_resort(StateFolder(tmp_path)))


async def _last_resort(folder: StateFolder) -> None:
    bench = Bench(folder, STAND_IN)
    good, bad = installed(folder, "1.0.0"), installed(folder, "1.1.0", load="fail:load-failed")

    served = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    served.route(Route(pipeline=PIPELINE, serving=bad, refuge=good))
    slot = served.slots[bad.key]
    await _until(lambda: slot.state == "failed" and bool(served.usable))
    slot.failed_at -= LAST_RESORT_S
    served.tick()
    assert slot.loads == 1  # the refuge answers

    alone = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    alone.route(Route(pipeline=PIPELINE, serving=bad))
    slot = alone.slots[bad.key]
    await _until(lambda: slot.state == "failed")
    alone.tick()
    assert slot.loads == 1  # too soon
    slot.failed_at -= LAST_RESORT_S
    alone.tick()
    assert slot.loads == 2
    for pipeline in (served, alone):
        pipeline.retire()
    await _until(lambda: served.empty and alone.empty and all(worker.gone for worker in bench.workers))


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - the pipeline has no event for a test to wait on
            await asyncio.sleep(0.01)
