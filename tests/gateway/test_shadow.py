"""A release that shadows: whatever becomes of it, applications get the same bytes, and what serves is counted as ever."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_agent.core.record import PipelineRecord, State
from holdfast_gateway.control import Route, Status
from holdfast_gateway.shadow_queue import QUEUED_MAX
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from support import digits_models, installed_release
from support.gateway_bench import (
    PIPELINE,
    AgentEnd,
    GatewayBench,
    Http,
    eventually,
    installed,
    running_gateway,
    write_record,
)
from support.gateway_traffic import Load
from support.shadowing_gateway import Told, shadowed, until_shadow

pytestmark = pytest.mark.slow

SHIPPED = (sys.executable, "-m", "holdfast_worker")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[GatewayBench]:
    with running_gateway(tmp_path) as bench:
        yield bench


def test_it_is_asked_what_was_answered_and_counted_apart(bench: GatewayBench) -> None:
    good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent = bench.agent()
    shadowed(agent, good, new)
    with bench.http() as http:
        for what in ("ok", "ok", "differ", "null", "error", "fault", "other"):
            status, answer = http.infer(v1_1_0=what)
            assert (status, answer["model_version"]) == (200, "1.0.0")
        assert http.infer(v1_0_0="fault")[0] == 400  # not answered, so not shadowed
        metrics = http.ask("GET", "/metrics")[2].decode()
    told = Told(agent)
    part = told.until(new, 7)
    assert (part.requests, part.nulls, part.errors, part.incomparable) == (7, 1, 1, 2)
    assert (part.compared, part.agreed, part.dropped) == (3, 2, 0)
    assert f'holdfast_shadow_requests_total{{model="{PIPELINE}",version="1.1.0"}}' in metrics
    assert {(one.requests, one.errors, one.nulls, one.input_faults) for one in told.of(new)} == {(0, 0, 0, 0)}
    assert sum(one.requests for one in told.of(good)) == 7


def test_what_the_refuge_answered_is_not_held_against_it(bench: GatewayBench) -> None:
    """It is compared with the serving release alone."""
    old, good = installed(bench.folder, "0.9.0"), installed(bench.folder, "1.0.0")
    new = installed(bench.folder, "1.1.0")
    agent = bench.agent()
    agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=good, refuge=old, shadow=new)))
    until_shadow(agent, new, "ready")
    agent.until_state(old, "ready")
    with bench.http() as http:
        assert http.infer(v1_0_0="error")[1]["model_version"] == "0.9.0"
        assert http.infer()[1]["model_version"] == "1.0.0"
    told = Told(agent)
    assert told.until(new, 1).requests == 1
    assert sum(one.requests for one in told.of(good)) == 2


def test_it_never_answers_even_when_nobody_else_can(bench: GatewayBench) -> None:
    good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    shadowed(bench.agent(), good, new)
    with bench.http() as http:
        status, answer = http.infer(v1_0_0="error")
        assert (status, "1.1.0" in json.dumps(answer)) == (500, False)
        assert http.infer(version="1.1.0")[0] == 404


def test_one_that_crashes_at_everything_is_given_up_and_nobody_else_notices(bench: GatewayBench) -> None:
    good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent = bench.agent()
    shadowed(agent, good, new)
    with Load(bench, v1_1_0="crash") as load:
        until_shadow(agent, new, "failed")
    assert load.failed == []
    failed = until_shadow(agent, new, "failed")
    assert (failed.code, failed.losses) == ("crash-loop", 4)
    part = Told(agent).until(new, len(load.answers))
    assert (part.requests, part.errors, part.hangs) == (4, 4, 0)
    (slot,) = next(one for one in reversed(agent.heard) if isinstance(one, Status)).slots
    assert (slot.state, slot.losses) == ("ready", 0)


def test_while_it_hangs_the_newest_wait_for_it_and_the_oldest_are_dropped(bench: GatewayBench) -> None:
    limits = Limits(deadline_ms=500, load_deadline_s=20)
    good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0", limits=limits)
    agent = bench.agent()
    shadowed(agent, good, new)
    with bench.http() as http:
        assert http.infer(v1_1_0="hang")[0] == 200
        for _ in range(QUEUED_MAX + 30):
            assert http.infer()[0] == 200
    part = Told(agent).until(new, QUEUED_MAX + 31)
    assert part.hangs == part.errors == 1
    assert 0 < part.dropped <= 30  # all 30, unless its worker was given up and started again meanwhile


def test_it_goes_on_from_the_record_when_the_gateway_starts_anew(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as bench:
        good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    write_record(bench.folder, digits=PipelineRecord(state=State.SHADOWING, current=good, candidate=new))
    with running_gateway(tmp_path) as again:
        until_shadow(again.agent(), new, "ready")


def test_one_whose_worker_is_older_than_shadows_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "2")
    with running_gateway(tmp_path) as bench:
        good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
        agent = bench.agent()
        agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=good, shadow=new)))
        failed = until_shadow(agent, new, "failed")
    assert failed.code == "not-supported"
    assert "to shadow takes 3" in failed.detail


def test_a_shadow_that_is_not_wanted_any_more_ends_and_its_last_counts_are_handed_over(bench: GatewayBench) -> None:
    good, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent = bench.agent()
    pid = shadowed(agent, good, new).worker_pid
    with bench.http() as http:
        http.infer(v1_1_0="hang")
        http.infer()
    agent.until_in_force(agent.serve(good))
    assert Told(agent).until(new, 2).dropped == 2
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its worker is still there")


# ---------------------------------------------------------------- real models, real workers


class Answers:
    """What one connection got for the same requests, byte for byte."""

    def __init__(self, http: Http) -> None:
        images = digits_models.images()[:24]
        tensors = [installed_release.tensor("image", image.reshape(1, -1)) for image in images]
        self._http = http
        self._bodies = [json.dumps({"id": str(n), "inputs": [one]}).encode() for n, one in enumerate(tensors)]

    def got(self) -> list[tuple[int, str, bytes]]:
        path = f"/v2/models/{PIPELINE}/infer"
        found = [self._http.ask("POST", path, body) for body in self._bodies]
        return [(status, headers.get("Content-Type", ""), body) for status, headers, body in found]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_answers_are_the_same_bytes_with_the_shadow_on_off_crashing_and_hanging(tmp_path: Path) -> None:
    """Real models: off, on, its worker killed, stopped, and off again. What serves loses no worker and counts no error."""
    with running_gateway(tmp_path, worker=SHIPPED) as bench:
        old = installed_release.install(bench.folder, PIPELINE, "1.0.0", digits_models.trained())
        new = installed_release.install(bench.folder, PIPELINE, "1.1.0", digits_models.trained(0.0005))
        good, shadow = Target(release=old), Target(release=new)
        agent = bench.agent()
        agent.until_in_force(agent.serve(good))
        with bench.http() as http:
            answers = Answers(http)
            off = answers.got()
            pid = shadowed(agent, good, shadow).worker_pid
            assert os.getpriority(os.PRIO_PROCESS, pid) == 19
            assert answers.got() == off
            told = Told(agent)
            part = told.until(shadow, 24)
            assert (part.requests, part.compared) == (24, 24)
            os.kill(pid, signal.SIGKILL)
            assert answers.got() == off
            eventually(lambda: shadow_pid(agent, shadow, pid), "its worker is not started again")
            with stopped(shadow_pid(agent, shadow, pid)):
                assert answers.got() == off
            agent.until_in_force(agent.serve(good))
            assert answers.got() == off
        ours = told.of(good)
        assert sum(one.requests for one in ours) == 5 * 24
        assert sum(one.errors + one.failed_over + one.nulls + one.input_faults for one in ours) == 0
        told.until(shadow, 3 * 24)


def shadow_pid(agent: AgentEnd, shadow: Target, other: int) -> int:
    """Of the worker that is ready by the newest word, if it is another one."""
    agent.windows()
    newest = next(one for one in reversed(agent.heard) if isinstance(one, Status))
    pids = [one.worker_pid for one in newest.shadows if one.target == shadow and one.state == "ready"]
    return pids[0] if pids and pids[0] != other else 0
