"""A release that shadows where memory is short: it comes last, goes first, and what the device lacks is never held against it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_gateway.control import Route, Status
from support.gateway_bench import PIPELINE, alive, eventually, installed, running_gateway
from support.gateway_traffic import Load
from support.shadowing_gateway import Told, until_shadow

pytestmark = pytest.mark.slow

MB = 1024**2


def test_it_is_let_go_when_memory_runs_short_and_comes_back_when_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that reads its device's memory from a file. What was not asked meanwhile is counted as dropped."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setenv("GATEWAY_MEMINFO", str(meminfo))
    meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 60000 kB\n")
    with running_gateway(tmp_path) as bench:
        good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
        agent = bench.agent()
        agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=good, shadow=new)))
        told = until_shadow(agent, new, "stopped", saying="memory")
        assert ("too little memory" in told.detail, told.code) == (True, "no-memory")
        meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
        ready = until_shadow(agent, new, "ready")
        assert (ready.code, ready.detail) == ("", "")
        pid = ready.worker_pid
        since = len(agent.heard)
        meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 60000 kB\n")
        until_shadow(agent, new, "stopped", since=since, saying="memory")
        eventually(lambda: not alive(pid), "its worker is still there")
        with bench.http() as http:
            assert http.infer()[0] == 200
        assert Told(agent).until(new, 1).dropped == 1
        meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
        until_shadow(agent, new, "ready", since=len(agent.heard))


def test_of_room_for_one_the_refuge_has_it_however_small_the_shadow_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold refuge that waits for memory is loaded as soon as there is enough, and the shadow after it."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setenv("GATEWAY_MEMINFO", str(meminfo))
    meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 300000 kB\n")
    with running_gateway(tmp_path, standby="auto") as bench:
        old = installed(bench.folder, "0.9.0", model_bytes=200 * MB)
        good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
        agent = bench.agent()
        agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=good, refuge=old, shadow=new)))
        assert "cold" in agent.until_state(old, "stopped").detail
        assert until_shadow(agent, new, "stopped", saying="memory").loads == 0
        meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
        agent.until_state(old, "ready")
        until_shadow(agent, new, "ready")


# A process of its own: a thread of the test's would wait for its turn beside those that ask.
KERNEL = """
import sys, time
from pathlib import Path
vmstat, ended = Path(sys.argv[1]), 0
while True:
    ended += 1
    fresh = vmstat.with_suffix(".new")
    fresh.write_text(f"pgfree 7\\noom_kill {ended}\\n")
    fresh.rename(vmstat)
    time.sleep(0.001)
"""


@contextmanager
def kernel_that_ends_for_memory(vmstat: Path) -> Iterator[None]:
    """Whatever dies meanwhile, the kernel says that it ended it for want of memory."""
    with subprocess.Popen([sys.executable, "-c", KERNEL, str(vmstat)]) as counting:
        try:
            eventually(lambda: "pgfree" in vmstat.read_text(), "it counts")
            yield
        finally:
            counting.kill()


@pytest.mark.parametrize("load", ["ok", "crash"])
def test_one_that_the_kernel_ends_for_want_of_memory_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    """Asked or being loaded: after four of them it rests. What ends by itself is still a crash loop."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 0\n")
    monkeypatch.setenv("GATEWAY_VMSTAT", str(vmstat))
    with running_gateway(tmp_path) as bench, kernel_that_ends_for_memory(vmstat):
        good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0", load=load)
        agent = bench.agent()
        agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=good, shadow=new)))
        with Load(bench, v1_1_0="crash") as traffic:
            told = until_shadow(agent, new, "stopped", saying="kernel")
        assert traffic.failed == []
        assert (told.code, told.losses) == ("no-memory", 4)
        since = len(agent.heard)
        with bench.http() as http:
            assert http.infer()[0] == 200
        agent.windows()
        assert agent.heard[since:]
        assert {one.shadows[0].state for one in agent.heard[since:] if isinstance(one, Status)} <= {"stopped"}
