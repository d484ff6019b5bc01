"""After a restart of the gateway, who asks for what the record says waits until it is loaded: so long, and no other time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.core.record import PipelineRecord
from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import slot as slots
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.pipeline import Pipeline
from holdfast_gateway.waiting_room import ROOM_MAX
from holdfast_gateway.windows import Ledger
from holdfast_shared.wire.release import Limits
from support.gateway_bench import PIPELINE, STAND_IN, GatewayBench, Http, installed, write_record
from support.pipeline_alone import Quiet, until

pytestmark = pytest.mark.slow

LOADING = f"{PIPELINE}: no release can answer now: 1.0.0 is loading"
BODY = b'{"do": {}}'


@contextlib.contextmanager
def restarted(tmp_path: Path, *, load: str, limits: Limits) -> Iterator[GatewayBench]:
    """With 1.0.0 in the record, which is loading."""
    bench = GatewayBench(tmp_path)
    write_record(
        bench.folder, digits=PipelineRecord(current=installed(bench.folder, "1.0.0", limits=limits, load=load))
    )
    bench.start()
    try:
        yield bench
    finally:
        bench.stop()


def test_nobody_waits_longer_than_a_release_may_take_to_load(tmp_path: Path) -> None:
    """A release that does not come back is no reason to keep an application for ever."""
    limits = Limits(deadline_ms=100, load_deadline_s=1)
    with restarted(tmp_path, load="slow:600000", limits=limits) as bench, bench.http() as http:
        status, answer = http.infer()
    assert (status, answer["error"]) == (503, LOADING)


def test_who_hangs_up_meanwhile_makes_room_and_is_not_computed_for(tmp_path: Path) -> None:
    """Clients with less patience come again and again: the worker is for those who are still there."""
    limits = Limits(deadline_ms=200, load_deadline_s=60)
    with restarted(tmp_path, load="slow:5000", limits=limits) as bench:
        agent = bench.agent()
        for _ in range(ROOM_MAX):
            peer = Http(*bench.address)
            peer.send("POST", f"/v2/models/{PIPELINE}/infer", BODY)
            peer.close()
        with bench.http() as http:
            assert http.infer()[0] == 200
        (window,) = agent.windows()
        assert window.requests == 1


def test_who_waits_when_it_is_stopped_is_told_so_at_once(tmp_path: Path) -> None:
    limits = Limits(deadline_ms=600_000, load_deadline_s=600)
    with restarted(tmp_path, load="slow:600000", limits=limits) as bench, bench.http() as http:
        http.send("POST", f"/v2/models/{PIPELINE}/infer", BODY)
        with bench.http() as other:  # read after it
            assert other.get("/v2/health/ready")[0] == 503
        assert bench._process is not None
        bench._process.send_signal(signal.SIGTERM)
        status, _, body = http.receive()
        assert (status, LOADING in body.decode()) == (503, True)


def test_that_patience_is_for_the_first_load_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for one that was ready since, nor for one that failed and is tried again, nor for one that is kept cold."""
    monkeypatch.setattr(slots, "RESUMED_WITHIN_S", 7.0)
    asyncio.run(_patience(StateFolder(tmp_path)))


async def _patience(folder: StateFolder) -> None:
    bench = Bench(folder, STAND_IN, standby="cold")
    limits = Limits(deadline_ms=300, load_deadline_s=60)
    serving, cold, failing = (
        installed(folder, version, limits=limits, load=load)
        for version, load in (("1.0.0", "ok"), ("1.1.0", "ok"), ("1.2.0", "fail:load-failed"))
    )
    pipeline = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
    pipeline.resume(Route(pipeline=PIPELINE, serving=serving, refuge=cold, testing=failing))
    first, second, third = (pipeline.slots[one.key] for one in (serving, cold, failing))
    assert (first.state, first.patience_s) == ("loading", 7.0)
    await until(lambda: first.state == "ready" and third.state == "failed")
    assert first.patience_s == 0.3
    third.start_afresh()
    assert (third.state, third.patience_s) == ("loading", 0.3)
    second.start_on_demand()
    assert (second.state, second.patience_s) == ("loading", 0.3)
    pipeline.retire()
    await until(lambda: pipeline.empty and all(worker.gone for worker in bench.workers))
