"""While the only good slot is started again, requests wait for it: within their deadline, and only so many of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from holdfast_gateway.waiting_room import ROOM_MAX
from holdfast_gateway.worker import ASKED_MAX
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, Http, eventually, installed
from support.gateway_traffic import Queue

pytestmark = pytest.mark.slow

PATIENT = Limits(deadline_ms=20_000, load_deadline_s=20)


def alone(bench: GatewayBench, limits: Limits, load: str = "ok") -> tuple[AgentEnd, Target]:
    """One release that serves, and no refuge."""
    agent, target = bench.agent(), installed(bench.folder, "1.0.0", limits=limits, load=load)
    agent.until_in_force(agent.serve(target))
    return agent, target


def counts(agent: AgentEnd) -> dict[str, int]:
    (window,) = agent.windows()
    names = ("requests", "errors", "nulls", "input_faults", "failed_over")
    return {name: getattr(window, name) for name in names if getattr(window, name)}


def test_without_a_refuge_a_crash_costs_its_own_request_alone(bench: GatewayBench) -> None:
    """Those behind it, and those that come while the worker is started again, are answered by it; each is counted once."""
    agent, target = alone(bench, PATIENT)
    with Queue(bench, ASKED_MAX + 3) as queue:
        queue.send({"*": "slow:300"}, {"*": "crash"}, *[{"*": "ok"}] * (ASKED_MAX + 1))
        answers = queue.answers()
    assert [status for status, _ in answers] == [200, 503] + [200] * (ASKED_MAX + 1)
    assert agent.until_state(target, "ready").losses <= 1
    assert counts(agent) == {"requests": ASKED_MAX + 3, "errors": 1}


def test_a_worker_that_is_killed_between_requests_fails_none(bench: GatewayBench) -> None:
    agent, _ = alone(bench, PATIENT)
    with bench.http() as http:
        for loads in range(1, 4):
            assert http.infer()[0] == 200
            pid = agent.until(
                lambda one, loads=loads: next(  # type: ignore[misc] # mypy cannot infer a lambda with a default
                    (s.worker_pid for s in getattr(one, "slots", ()) if (s.state, s.loads) == ("ready", loads)), None
                )
            )
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "it lives on")  # type: ignore[misc]  # mypy infers no type for a default
            assert http.infer()[0] == 200
    assert counts(agent) == {"requests": 6}


def test_nobody_waits_longer_than_a_request_may_take(bench: GatewayBench) -> None:
    """And is told what it waited for."""
    agent, target = alone(bench, Limits(deadline_ms=100, load_deadline_s=20), load="slow:3000")
    with bench.http() as http:
        assert http.infer(all_="crash")[0] == 503
        agent.comes_to(target, "loading")
        status, answer = http.infer()
    assert (status, answer["error"]) == (503, f"{PIPELINE}: no release can answer now: 1.0.0 is loading")


def test_beyond_what_may_wait_a_request_is_turned_away(bench: GatewayBench) -> None:
    """With 429; everyone who was let in is answered."""
    alone(bench, PATIENT, load="slow:1500")
    body = json.dumps({"do": {}}).encode()
    with bench.http() as http:
        http.infer(all_="crash")
        peers = [Http(*bench.address) for _ in range(ROOM_MAX + 5)]
        for peer in peers:
            peer.send("POST", f"/v2/models/{PIPELINE}/infer", body)
        statuses = [peer.receive()[0] for peer in peers]
        for peer in peers:
            peer.close()
    assert (statuses.count(200), statuses.count(429)) == (ROOM_MAX, 5)


def test_a_release_that_comes_back_no_more_tells_those_who_waited(bench: GatewayBench) -> None:
    """As soon as it is known, not at their deadline."""
    agent, target = alone(bench, PATIENT)
    bench.folder.manifest(target.release.digest).write_bytes(b"damaged")
    with Queue(bench, 4) as queue:
        queue.send({"*": "slow:300"}, {"*": "crash"}, {"*": "ok"}, {"*": "ok"})
        answers = queue.answers()
    assert [status for status, _ in answers] == [200, 503, 503, 503]
    assert counts(agent) == {"requests": 4, "errors": 1}
    assert agent.until_state(target, "failed").code == "damaged-blob"


def test_a_request_that_failed_in_one_slot_waits_for_the_other(bench: GatewayBench) -> None:
    """The refuge is being started again in the moment in which what serves fails."""
    agent = bench.agent()
    serving, refuge = (installed(bench.folder, version, limits=PATIENT) for version in ("1.1.0", "1.0.0"))
    agent.until_in_force(agent.serve(serving, refuge))
    os.kill(agent.until_state(refuge, "ready").worker_pid, signal.SIGKILL)
    agent.comes_to(refuge, "loading")
    with bench.http() as http:
        status, answer = http.infer(v1_1_0="null")
    assert (status, answer["model_version"]) == (200, "1.0.0")


# -- poison


def pair(bench: GatewayBench) -> tuple[AgentEnd, Target, Target]:
    agent = bench.agent()
    serving, refuge = (installed(bench.folder, version, limits=PATIENT) for version in ("1.1.0", "1.0.0"))
    agent.until_in_force(agent.serve(serving, refuge))
    agent.until_state(refuge, "ready")
    return agent, serving, refuge


def poison(number: int) -> bytes:
    """The same inputs every time, under another id."""
    return json.dumps({"id": str(number), "inputs": [1, 2, 3], "do": {"*": "crash"}}).encode()


def test_a_request_that_killed_both_workers_is_refused_from_then_on(bench: GatewayBench) -> None:
    """Whatever its id is: it costs two workers once; others are answered, and it counts against neither release."""
    agent, serving, refuge = pair(bench)
    with bench.http() as http:
        assert http.infer_raw(poison(0))[0] == 500
        for number in range(1, 20):
            status, answer = http.infer_raw(poison(number))
            assert status == 422
            assert "killed the workers of two releases; it is refused for" in answer["error"]
        assert http.infer()[0] == 200
        metrics = http.ask("GET", "/metrics")[2].decode()
    assert f'holdfast_refused_total{{model="{PIPELINE}",reason="quarantined"}} 19' in metrics
    windows = {one.release: one for one in agent.windows()}
    assert (windows[serving.release].input_faults, windows[serving.release].errors) == (1, 0)
    for target in (serving, refuge):
        found = agent.comes_to(target, "ready")
        assert (found.losses, found.loads) == (0, 2)


def test_another_release_may_be_asked_what_was_poison(bench: GatewayBench) -> None:
    agent, serving, _ = pair(bench)
    better = installed(bench.folder, "1.2.0", limits=PATIENT)
    with bench.http() as http:
        body = poison(0).replace(b'"*"', b'"1.0.0": "crash", "1.1.0"')
        assert http.infer_raw(body)[0] == 500
        assert http.infer_raw(body)[0] == 422
        agent.until_in_force(agent.serve(better, serving))
        status, answer = http.infer_raw(body)
    assert (status, answer["model_version"]) == (200, "1.2.0")
