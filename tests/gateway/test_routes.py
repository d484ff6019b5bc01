"""What should be is converged to: at once where it can be, without a lost request, and with or without an agent."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from holdfast_agent.core.record import PipelineRecord, State
from holdfast_gateway.control import FromGateway, RetryLoad, Route, Status, Switched, Tallied
from holdfast_gateway.worker import ASKED_MAX
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from holdfast_shared.wire.report import Window
from support.gateway_bench import PIPELINE, GatewayBench, alive, eventually, installed, running_gateway, write_record
from support.gateway_traffic import Load, Queue

pytestmark = pytest.mark.slow


def test_a_switch_under_load_fails_no_request(bench: GatewayBench) -> None:
    """The next release is tested first, then serves from one answer to the next; the old one is let go."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old))
    with Load(bench) as load:
        load.until_answered_by("1.0.0")
        agent.serve(old, testing=new)
        agent.until_state(new, "ready")
        agent.until_in_force(agent.serve(new, refuge=old))
        load.until_answered_by("1.1.0")
        agent.until_in_force(agent.serve(new))
        load.until_answered_by("1.1.0")
    assert load.failed == []
    windows = agent.windows()
    assert sum(one.requests for one in windows) == len(load.answers)


def test_each_connection_sees_the_switch_once(bench: GatewayBench) -> None:
    """No request is answered by the old release after the serial says that the new one serves."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old))
    agent.serve(old, testing=new)
    agent.until_state(new, "ready")
    with Load(bench) as load:
        load.until_answered_by("1.0.0")
        agent.until_in_force(agent.serve(new, refuge=old))
        done = [len(own) for own in load.versions_each]
        load.until_answered_by("1.1.0", 50)
    for count, own in zip(done, load.versions_each, strict=True):
        assert "1.0.0" not in own[count + 1 :]  # one more was under way
        assert own == sorted(own)


def test_a_tested_release_gets_no_request(bench: GatewayBench) -> None:
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old, testing=new))
    agent.until_state(new, "ready")
    with Load(bench) as load:
        load.until_answered_by("1.0.0", 50)
    assert set(load.versions()) == {"1.0.0"}


def test_the_old_release_serves_until_the_new_one_is_ready(bench: GatewayBench) -> None:
    """Although no route names it any more; the serial comes into force only then."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0", load="slow:400")
    first = agent.serve(old)
    agent.until_in_force(first)
    with Load(bench) as load:
        load.until_answered_by("1.0.0")
        second = agent.serve(new)
        agent.until_state(new, "loading")
        agent.until_in_force(second)
        load.until_answered_by("1.1.0")
    assert load.failed == []
    serials = [one.serial for one in agent.heard if isinstance(one, Status)]
    states = [
        {slot.target.release.version: slot.state for slot in one.slots}
        for one in agent.heard
        if isinstance(one, Status) and one.serial == second
    ]
    assert sorted(serials) == serials
    assert all(state["1.1.0"] == "ready" for state in states)


def test_what_served_and_is_only_tested_from_now_on_serves_until_another_is_ready(bench: GatewayBench) -> None:
    """A rule that served it only stages it now, and what is to serve instead has still to be loaded."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0", load="slow:400"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(new))
    with Load(bench) as load:
        load.until_answered_by("1.1.0")
        agent.until_in_force(agent.serve(old, testing=new))
        load.until_answered_by("1.0.0")
        begun = [len(own) + 1 for own in load.versions_each]  # one more was under way
        load.until_answered_by("1.0.0", 50)
    assert load.failed == []
    assert {one for own, start in zip(load.versions_each, begun, strict=True) for one in own[start:]} == {"1.0.0"}
    last = next(said for said in reversed(agent.heard) if isinstance(said, Status))  # counts may have been told since
    tested = next(one for one in last.slots if one.target == new)
    assert (tested.state, tested.loads, tested.losses) == ("ready", 1, 0)
    agent.until_in_force(agent.serve(old))
    eventually(lambda: not alive(tested.worker_pid), "its worker is still there")


def test_a_release_that_cannot_load_never_comes_into_force(bench: GatewayBench) -> None:
    agent = bench.agent()
    old = installed(bench.folder, "1.0.0")
    bad = installed(bench.folder, "1.1.0", load="fail:self-test-failed")
    first = agent.serve(old)
    agent.until_in_force(first)
    with Load(bench) as load:
        agent.serve(bad, refuge=old)
        failed = agent.until_state(bad, "failed")
        load.until_answered_by("1.0.0")
    assert (failed.code, failed.detail) == ("self-test-failed", "as it was told")
    assert load.failed == []
    assert {one.serial for one in agent.heard if isinstance(one, Status)} == {0, first}


@pytest.mark.parametrize(
    ("how", "deadline_s", "code", "what"),
    [("crash", 60, "load-failed", "killed by SIGKILL"), ("hang", 1, "load-deadline", "limits.load_deadline_s")],
)
def test_loading_has_an_end(bench: GatewayBench, how: str, deadline_s: int, code: str, what: str) -> None:
    """A worker that dies or hangs while it loads is tried a few times, then the slot has failed."""
    agent = bench.agent()
    target = installed(bench.folder, "1.0.0", limits=Limits(load_deadline_s=deadline_s), load=how)
    agent.serve(target)
    failed = agent.until_state(target, "failed")
    assert failed.code == code
    assert what in failed.detail
    with bench.http() as http:
        status, answer = http.infer()
    assert status == 503
    assert code in answer["error"]


@pytest.mark.parametrize(
    ("oldest", "newest", "spoken"),
    [("", "1", "1"), ("1", "2", "2"), ("1", "3", "3"), ("1", "99", "3"), ("3", "99", "3")],
    ids=["oldest", "older", "the same", "newer", "newer, and not as old as we may be"],
)
def test_a_worker_older_or_newer_than_the_gateway_is_spoken_to_in_the_newest_that_both_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oldest: str, newest: str, spoken: str
) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", newest)
    monkeypatch.setenv("STAND_IN_OLDEST", oldest)
    with running_gateway(tmp_path) as bench:
        agent, target = bench.agent(), installed(bench.folder, "1.0.0")
        agent.until_in_force(agent.serve(target))
        with bench.http() as http:
            assert http.infer()[0] == 200
        status = agent.until(lambda one: one if isinstance(one, Status) and one.runtime else None)
    assert status.runtime["protocol"] == spoken


def test_a_worker_of_another_protocol_is_not_spoken_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "99")
    with running_gateway(tmp_path) as bench:
        agent, target = bench.agent(), installed(bench.folder, "1.0.0")
        agent.serve(target)
        failed = agent.until_state(target, "failed")
    assert failed.code == "not-supported"
    assert "speaks versions 99 to 99 of the protocol, this gateway 1 to 3" in failed.detail


def test_a_manifest_that_is_damaged_fails_its_slot_alone(bench: GatewayBench) -> None:
    """And `retry-load` loads it once it is repaired."""
    agent = bench.agent()
    good, bad = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    path = bench.folder.manifest(bad.release.digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    agent.serve(bad, refuge=good)
    assert agent.until_state(bad, "failed").code == "damaged-blob"
    agent.until_state(good, "ready")
    with bench.http() as http:
        assert http.infer()[1]["model_version"] == "1.0.0"
        path.write_bytes(whole)
        agent.say(RetryLoad(target=bad.key))
        agent.until_state(bad, "ready")
        assert http.infer()[1]["model_version"] == "1.1.0"


def test_a_pipeline_that_is_not_named_any_more_ends(bench: GatewayBench) -> None:
    agent = bench.agent()
    one = installed(bench.folder, "1.0.0")
    other = installed(bench.folder, "2.0.0", pipeline="faces")
    agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=one), Route(pipeline="faces", serving=other)))
    worker = agent.until_state(other, "ready").worker_pid
    agent.until_in_force(agent.serve(one))
    eventually(lambda: not alive(worker), "its worker lives on")
    with bench.http() as http:
        assert http.get("/v2/models/faces")[0] == 404
        assert http.infer()[0] == 200


def test_slow_answers_under_way_are_finished_by_a_slot_that_is_let_go(bench: GatewayBench) -> None:
    """By the old worker itself: it is not ended, and nobody else is asked the same again."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old, testing=new))
    agent.until_state(new, "ready")
    worker = agent.until_state(old, "ready").worker_pid
    with Queue(bench, ASKED_MAX) as queue:
        queue.send(*[{"1.0.0": "slow:200"}] * ASKED_MAX)
        agent.until_in_force(agent.serve(new))
        answers = queue.answers()
    assert [(status, answer["model_version"], answer["pid"]) for status, answer in answers] == [
        (200, "1.0.0", worker)
    ] * ASKED_MAX
    eventually(lambda: not alive(worker), "the old worker lives on")


def test_what_only_waited_for_the_old_release_is_answered_by_the_new_one(bench: GatewayBench) -> None:
    """What the old worker was asked, it answers; nothing else waits for it after the switch."""
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old, testing=new))
    agent.until_state(new, "ready")
    with Queue(bench, ASKED_MAX + 2) as queue:
        queue.send(*[{"1.0.0": "slow:200"}] * (ASKED_MAX + 2))
        agent.until_in_force(agent.serve(new, refuge=old))
        versions = [answer["model_version"] for _, answer in queue.answers()]
    assert versions == ["1.0.0"] * ASKED_MAX + ["1.1.0"] * 2


def test_a_slot_is_judged_by_what_it_does_since_it_began_to_serve(bench: GatewayBench) -> None:
    """Not by failures of a time before, which were answered for already; reports keep them."""
    agent = bench.agent()
    one, other = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(one, refuge=other))
    agent.until_state(other, "ready")
    with bench.http() as http:
        http.infer(v1_0_0="null")
        assert agent.until(partial(_tallied, one, 1)).nulls == 1
        agent.until_in_force(agent.serve(other, refuge=one))
        agent.until_in_force(agent.serve(one, refuge=other))
        since = len(agent.heard)
        http.infer()
        http.infer()
        assert agent.until(partial(_tallied, one, 2), since=since).nulls == 0
    assert sum(window.nulls for window in agent.windows()) == 1


def _tallied(target: Target, requests: int, message: FromGateway) -> Window | None:
    found = isinstance(message, Tallied) and message.target == target and message.window.requests == requests
    return message.window if isinstance(message, Tallied) and found else None


def test_a_slot_that_is_named_again_while_it_drains_goes_on(bench: GatewayBench) -> None:
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old, testing=new))
    agent.until_state(new, "ready")
    with Load(bench, 3, v1_0_0="slow:50") as load:
        for _ in range(10):
            load.until_answered_by("1.0.0", 3)
            agent.until_in_force(agent.serve(new))
            agent.until_in_force(agent.serve(old, testing=new))
            agent.comes_to(new, "ready")
    assert load.failed == []


def test_the_record_alone_is_enough_to_serve(tmp_path: Path) -> None:
    """After a boot, without an agent: the candidate on trial serves, and `current` is its refuge."""
    with running_gateway(tmp_path) as bench:
        current, candidate = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
        bench.stop()
        write_record(
            bench.folder, digits=PipelineRecord(state=State.TRIAL, current=current, candidate=candidate, trial_began=1)
        )
        bench.start()
        with bench.http() as http:
            eventually(lambda: http.infer()[1].get("model_version") == "1.1.0", "it does not serve")
            eventually(lambda: http.infer(v1_1_0="null")[1].get("model_version") == "1.0.0", "it has no refuge")
            assert http.get("/v2/health/ready")[0] == 200


def test_a_damaged_record_serves_nothing_until_an_agent_says_what(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as bench:
        target = installed(bench.folder, "1.0.0")
        bench.stop()
        write_record(bench.folder, digits=PipelineRecord(current=target))
        for half in bench.folder.root.glob("record.*"):
            half.write_bytes(half.read_bytes()[:80])
        bench.start()
        with bench.http() as http:
            status, answer = http.get("/v2/health/ready")
            assert status == 503
            assert "no pipeline is assigned" in answer["error"]
        assert "the record is damaged" in bench.log
        with bench.http() as http:
            status, answer = http.infer()
        assert status == 503, "what was assigned is not known: that is no reason to say that there is no such model"
        assert "the record is damaged" in answer["error"]
        agent = bench.agent()
        agent.until_in_force(agent.serve(target))
        with bench.http() as http:
            assert http.infer()[0] == 200
            assert http.get("/v2/models/other")[0] == 404, "now it is known what there is"


def test_an_agent_that_is_lost_changes_nothing(bench: GatewayBench) -> None:
    """Its successor is told what is, and counts that nobody had heard."""
    agent = bench.agent()
    target = installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(target))
    with Load(bench) as load:
        load.until_answered_by("1.0.0")
        agent.close()
        load.until_answered_by("1.0.0", 50)
        successor = bench.agent()
        assert successor.until_state(target, "ready").loads == 1
        load.until_answered_by("1.0.0")
    assert load.failed == []
    assert sum(one.requests for one in successor.windows()) == len(load.answers)


def test_a_newer_agent_replaces_the_older(bench: GatewayBench) -> None:
    older, target = bench.agent(), installed(bench.folder, "1.0.0")
    older.until_in_force(older.serve(target))
    newer = bench.agent()
    newer.until_state(target, "ready")
    older.until_closed()
    with bench.http() as http:
        assert http.infer()[0] == 200


def test_an_agent_that_speaks_nonsense_is_cut_off_and_serving_goes_on(bench: GatewayBench) -> None:
    agent, target = bench.agent(), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(target))
    agent._socket.sendall(b'{"say": "dance"}\n')
    agent.until_closed()
    successor = bench.agent()
    successor.until_state(target, "ready")
    with bench.http() as http:
        assert http.infer()[0] == 200


def test_the_first_good_answer_since_a_slot_began_to_serve_is_told_once(bench: GatewayBench) -> None:
    agent = bench.agent()
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent.until_in_force(agent.serve(old, testing=new))
    agent.until_state(new, "ready")
    with Load(bench) as load:
        load.until_answered_by("1.0.0")
        agent.until_in_force(agent.serve(new, refuge=old))
        load.until_answered_by("1.1.0")
        agent.until_in_force(agent.serve(old))
        load.until_answered_by("1.0.0")
    agent.windows()
    switched = [one for one in agent.heard if isinstance(one, Switched)]
    assert [one.target for one in switched] == [old, new, old]
    assert sorted(one.at_monotonic_us for one in switched) == [one.at_monotonic_us for one in switched]


def test_workers_end_with_their_gateway_however_it_ends(bench: GatewayBench) -> None:
    agent = bench.agent()
    targets = [installed(bench.folder, version) for version in ("1.0.0", "1.1.0")]
    agent.until_in_force(agent.serve(targets[0], targets[1]))
    workers = [agent.until_state(target, "ready").worker_pid for target in targets]
    os.kill(bench.pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, workers)), "workers outlive their gateway")
    bench.stop()
    bench.start()


def test_a_gateway_that_is_killed_and_started_again_serves_from_the_record(bench: GatewayBench) -> None:
    """Although its sockets are still lying there."""
    target = installed(bench.folder, "1.0.0")
    write_record(bench.folder, digits=PipelineRecord(current=target))
    bench.stop(signal.SIGKILL)
    bench.start()
    with bench.http() as http:
        eventually(lambda: http.infer()[0] == 200, "it does not serve")
