"""A refuge is loaded ahead where there is memory for it, and else when it is needed: no request is lost either way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge.configuration import Standby
from holdfast_gateway import standby
from holdfast_gateway.slot import COLD
from holdfast_gateway.standby import LEFT_BYTES_MIN, Memory
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from support.gateway_bench import AgentEnd, GatewayBench, alive, eventually, installed, running_gateway
from support.gateway_traffic import Load

MB = 1024**2
PATIENT = Limits(deadline_ms=20_000, load_deadline_s=20)


@pytest.mark.parametrize(
    ("setting", "available", "warm", "goes"),
    [
        ("warm", 0, True, False),
        ("cold", 8000 * MB, False, True),
        ("auto", 300 * MB, True, False),
        ("auto", 150 * MB, False, False),
        ("auto", 40 * MB, False, True),
    ],
)
def test_memory_decides_unless_somebody_said(setting: Standby, available: int, warm: bool, goes: bool) -> None:
    """Between the two bounds a slot stays as it is, so that it does not come and go."""
    memory = Memory(total_bytes=1000 * MB, available_bytes=available)
    assert standby.is_warm(setting, memory, 100 * MB) is warm
    assert standby.lets_go(setting, memory) is goes


def test_a_shadow_goes_before_a_refuge_does_and_comes_only_into_room() -> None:
    """By memory alone, falling: nothing new, the shadow gone, the refuge gone."""
    falling = [Memory(total_bytes=1000 * MB, available_bytes=left * MB) for left in (300, 150, 90, 70, 40)]
    assert [standby.is_shadowed(one, 100 * MB) for one in falling] == [True, False, False, False, False]
    assert [standby.lets_shadow_go(one) for one in falling] == [False, False, False, True, True]
    assert [standby.lets_go("auto", one) for one in falling] == [False, False, False, False, True]


def test_what_is_being_started_is_counted_as_taken() -> None:
    memory = Memory(total_bytes=1000 * MB, available_bytes=300 * MB)
    assert standby.is_warm("auto", memory, 100 * MB, starting_bytes=50 * MB)
    assert not standby.is_warm("auto", memory, 100 * MB, starting_bytes=150 * MB)
    assert Memory(total_bytes=100 * MB, available_bytes=0).reserve_bytes == LEFT_BYTES_MIN
    assert standby.needed_bytes(50 * MB) > 170 * MB


def test_this_device_says_how_much_it_has() -> None:
    found = Memory.now()
    assert 64 * MB < found.available_bytes <= found.total_bytes < 2**60


# -- with a gateway that keeps its refuge cold


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayBench]:
    monkeypatch.setenv("GATEWAY_KEPT_S", "0.5")
    with running_gateway(tmp_path, standby="cold") as bench:
        yield bench


def pair(bench: GatewayBench) -> tuple[AgentEnd, Target, Target]:
    agent = bench.agent()
    serving, refuge = (installed(bench.folder, version, limits=PATIENT) for version in ("1.1.0", "1.0.0"))
    agent.until_in_force(agent.serve(serving, refuge))
    return agent, serving, refuge


@pytest.mark.slow
@pytest.mark.parametrize("what", ["null", "error", "crash"])
def test_a_cold_refuge_answers_what_the_serving_slot_cannot(bench: GatewayBench, what: str) -> None:
    """It is started for that request, which waits for it."""
    agent, _, refuge = pair(bench)
    cold = agent.until_state(refuge, "stopped")
    assert (cold.detail, cold.loads, cold.worker_pid) == (COLD, 0, 0)
    with bench.http() as http:
        assert http.infer()[1]["model_version"] == "1.1.0"
        status, answer = http.infer(v1_1_0=what)
        assert (status, answer["model_version"]) == (200, "1.0.0")
        assert agent.until_state(refuge, "ready").loads == 1
    windows = {one.release: one for one in agent.windows()}
    assert windows[refuge.release].requests == 1


@pytest.mark.slow
def test_a_refuge_that_was_needed_is_let_go_again_and_comes_back(bench: GatewayBench) -> None:
    agent, _, refuge = pair(bench)
    with bench.http() as http:
        for loads in (1, 2):
            since = len(agent.heard)
            assert http.infer(v1_1_0="null")[1]["model_version"] == "1.0.0"
            ready = agent.until_state(refuge, "ready", since=since)
            assert ready.loads == loads
            eventually(lambda pid=ready.worker_pid: not alive(pid), "it is not let go")  # type: ignore[misc]  # mypy infers no type for a default
            agent.until_state(refuge, "stopped", since=since)


@pytest.mark.slow
def test_a_switch_to_a_cold_release_fails_no_request(bench: GatewayBench) -> None:
    """A fallback: what was cold is loaded, and what served goes on until it is ready."""
    agent, _, refuge = pair(bench)
    with Load(bench) as load:
        load.until_answered_by("1.1.0")
        agent.until_in_force(agent.serve(refuge))
        load.until_answered_by("1.0.0")
    assert load.failed == []


@pytest.mark.slow
def test_a_cold_refuge_is_loaded_when_what_serves_cannot_be(bench: GatewayBench) -> None:
    """Before anybody asks."""
    agent = bench.agent()
    refuge = installed(bench.folder, "1.0.0", limits=PATIENT)
    agent.serve(installed(bench.folder, "1.1.0", limits=PATIENT, load="fail:load-failed"), refuge)
    agent.until_state(refuge, "ready")
    with bench.http() as http:
        assert http.infer()[1]["model_version"] == "1.0.0"
