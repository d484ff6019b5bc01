"""A gateway with the shipped worker on releases that were installed for it, as an agent leaves them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from holdfast_agent.core.record import PipelineRecord
from holdfast_shared.assign import Target
from support import installed_release
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, eventually, write_record

SHIPPED: Final = (sys.executable, "-m", "holdfast_worker")


@contextlib.contextmanager
def serving(folder: Path, model: bytes, **details: Any) -> Iterator[tuple[str, int]]:
    """Its address, once it answers. `details` are those of `installed_release.publish`."""
    with _gateway(folder) as bench:
        target = Target(release=installed_release.install(bench.folder, PIPELINE, "1.0.0", model, **details))
        write_record(bench.folder, digits=PipelineRecord(current=target))
        _start(bench)
        yield bench.address


class TwoSlots:
    """Both warm; `switch` has the other one serve."""

    def __init__(self, bench: GatewayBench, agent: AgentEnd, serving: Target, refuge: Target) -> None:
        self.address = bench.address
        self.pid = bench.pid
        self._agent, self._serving, self._refuge = agent, serving, refuge

    def switch(self) -> None:
        """Returns when it is in force."""
        self._serving, self._refuge = self._refuge, self._serving
        self._agent.until_in_force(self._agent.serve(self._serving, refuge=self._refuge))
        self._agent.heard.clear()


@contextlib.contextmanager
def two_slots(folder: Path, current: bytes, previous: bytes) -> Iterator[TwoSlots]:
    """A gateway whose agent is the caller."""
    with _gateway(folder) as bench:
        new = Target(release=installed_release.install(bench.folder, PIPELINE, "1.1.0", current))
        old = Target(release=installed_release.install(bench.folder, PIPELINE, "1.0.0", previous))
        write_record(bench.folder, digits=PipelineRecord(current=new, previous=old))
        _start(bench)
        agent = bench.agent()
        agent.until_in_force(agent.serve(new, refuge=old))
        agent.until_state(old, "ready")
        yield TwoSlots(bench, agent, new, old)


@contextlib.contextmanager
def _gateway(folder: Path) -> Iterator[GatewayBench]:
    home = folder / f"gateway-{len(list(folder.iterdir()))}"
    home.mkdir()
    bench = GatewayBench(home, worker=SHIPPED)
    try:
        yield bench
    finally:
        bench.stop()


def _start(bench: GatewayBench) -> None:
    bench.start()
    with bench.http() as http:
        eventually(lambda: http.get("/v2/health/ready")[0] == 200, "a gateway that is ready")
