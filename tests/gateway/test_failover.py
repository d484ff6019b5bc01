"""A request that one slot cannot answer is answered by the other, and every count says what happened, once."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast_gateway.control import FromGateway, SlotStatus, Status, Tallied
from holdfast_gateway.losses import LOSSES_MAX
from holdfast_gateway.worker import ASKED_MAX
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from holdfast_shared.wire.report import Window
from support.gateway_bench import AgentEnd, GatewayBench, alive, eventually, installed
from support.gateway_traffic import Queue

pytestmark = pytest.mark.slow

HANG_MS = 300


class Pair(NamedTuple):
    """1.1.0 serves, 1.0.0 is its refuge, and an agent is connected."""

    agent: AgentEnd
    serving: Target
    refuge: Target

    def window(self, target: Target) -> Window | None:
        """What was counted of it since the start."""
        found = [one for one in self.agent.windows() if one.release == target.release]
        assert len(found) <= 1
        return found[0] if found else None


@pytest.fixture
def pair(bench: GatewayBench) -> Pair:
    limits = Limits(deadline_ms=HANG_MS, load_deadline_s=20)
    agent = bench.agent()
    serving, refuge = (installed(bench.folder, version, limits=limits) for version in ("1.1.0", "1.0.0"))
    agent.until_in_force(agent.serve(serving, refuge))
    agent.until_state(refuge, "ready")
    return Pair(agent, serving, refuge)


def counted(window: Window | None) -> dict[str, int]:
    """The counts that are not zero."""
    assert window is not None
    names = ("requests", "errors", "nulls", "hangs", "input_faults", "failed_over")
    return {name: getattr(window, name) for name in names if getattr(window, name)}


def test_what_serves_answers(bench: GatewayBench, pair: Pair) -> None:
    with bench.http() as http:
        status, answer = http.infer(id="7")
    assert (status, answer["model_version"], answer["id"]) == (200, "1.1.0", "7")
    assert counted(pair.window(pair.serving)) == {"requests": 1}
    assert pair.window(pair.refuge) is None


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        ("crash", {"errors": 1}),
        ("hang", {"errors": 1, "hangs": 1}),
        ("null", {"nulls": 1}),
        ("error", {"errors": 1}),
        ("garbage", {"errors": 1}),
        ("wrong-id", {"errors": 1}),
    ],
)
def test_the_same_request_is_answered_once_by_the_refuge(
    bench: GatewayBench, pair: Pair, what: str, counts: dict[str, int]
) -> None:
    with bench.http() as http:
        status, answer = http.infer(id="7", v1_1_0=what)
    assert (status, answer["model_version"], answer["id"]) == (200, "1.0.0", "7")
    assert counted(pair.window(pair.serving)) == {"requests": 1, "failed_over": 1, **counts}
    assert counted(pair.window(pair.refuge)) == {"requests": 1}


def test_a_hang_takes_its_deadline_and_its_latency_says_so(bench: GatewayBench, pair: Pair) -> None:
    with bench.http() as http:
        http.infer(v1_1_0="hang")
    window = pair.window(pair.serving)
    assert window is not None
    found = window.latency.quantile_ms(1.0)
    assert found is not None
    assert HANG_MS * 0.98 <= found < HANG_MS * 3
    assert window.latency.count == 1


@pytest.mark.parametrize("what", ["crash", "error"])
def test_what_fails_in_both_slots_counts_against_neither(bench: GatewayBench, pair: Pair, what: str) -> None:
    with bench.http() as http:
        status, answer = http.infer(all_=what)
    assert status == 500
    assert "1.1.0" in answer["error"]
    assert "1.0.0" in answer["error"]
    assert counted(pair.window(pair.serving)) == {"input_faults": 1}
    assert pair.window(pair.refuge) is None
    assert pair.agent.until_state(pair.serving, "ready").losses == 0
    assert pair.agent.until_state(pair.refuge, "ready").losses == 0


def test_null_in_both_slots_is_answered_with_the_outputs_of_the_first(bench: GatewayBench, pair: Pair) -> None:
    with bench.http() as http:
        status, answer = http.infer(all_="null")
    assert (status, answer["model_version"]) == (200, "1.1.0")
    assert answer["outputs"]
    assert counted(pair.window(pair.serving)) == {"input_faults": 1}
    assert pair.window(pair.refuge) is None


def test_a_faulty_request_is_not_tried_again(bench: GatewayBench, pair: Pair) -> None:
    with bench.http() as http:
        status, answer = http.infer(all_="fault")
        assert (status, answer["error"]) == (400, "input x is missing")
    assert counted(pair.window(pair.serving)) == {"input_faults": 1}
    assert pair.window(pair.refuge) is None


def test_without_a_refuge_a_crash_is_an_error_that_says_so(bench: GatewayBench, pair: Pair) -> None:
    pair.agent.until_in_force(pair.agent.serve(pair.serving))
    with bench.http() as http:
        status, answer = http.infer(all_="crash")
    assert status == 503
    assert "killed by SIGKILL" in answer["error"]
    assert counted(pair.window(pair.serving)) == {"requests": 1, "errors": 1}


def test_without_a_refuge_null_is_answered_as_it_is(bench: GatewayBench, pair: Pair) -> None:
    pair.agent.until_in_force(pair.agent.serve(pair.serving))
    with bench.http() as http:
        status, answer = http.infer(all_="null")
    assert (status, answer["model_version"]) == (200, "1.1.0")
    assert counted(pair.window(pair.serving)) == {"requests": 1, "nulls": 1}


def test_a_request_for_one_version_is_answered_by_no_other(bench: GatewayBench, pair: Pair) -> None:
    with bench.http() as http:
        status, answer = http.infer(version="1.1.0", v1_1_0="error")
        assert (status, answer["error"]) == (500, "digits 1.1.0: 1.1.0 raised")
        status, answer = http.infer(version="1.0.0")
        assert status == 404
        assert "version 1.1.0 does" in answer["error"]


def test_requests_behind_a_hang_are_answered_too_and_are_no_errors(bench: GatewayBench, pair: Pair) -> None:
    """Of those behind it, ASKED_MAX - 1 were asked already and count as failed over; the others were only waiting."""
    waiting = 3
    with Queue(bench, ASKED_MAX + waiting) as queue:
        queue.send({"1.1.0": "hang"}, *[{"*": "ok"}] * (ASKED_MAX - 1 + waiting))
        assert [(status, answer["model_version"]) for status, answer in queue.answers()] == [(200, "1.0.0")] * (
            ASKED_MAX + waiting
        )
    windows = {one.release: one for one in pair.agent.windows()}
    serving, refuge = windows[pair.serving.release], windows[pair.refuge.release]
    assert counted(serving) == {"requests": ASKED_MAX, "errors": 1, "hangs": 1, "failed_over": ASKED_MAX}
    assert serving.latency.count == 1  # nothing is known of those behind
    assert counted(refuge) == {"requests": ASKED_MAX + waiting}


@pytest.mark.parametrize(("what", "code"), [("crash", "crash"), ("hang", "hang")])
def test_a_lost_worker_says_how_it_was_lost(bench: GatewayBench, pair: Pair, what: str, code: str) -> None:
    with bench.http() as http:
        http.infer(v1_1_0=what)
        assert pair.agent.until(partial(_ready_with_loads, pair.serving, 2)).code == code


@pytest.mark.parametrize(
    ("ends_ms", "said"), [(100, "killed by SIGSEGV"), (3_600_000, "its connection broke, and it lived on")]
)
def test_a_worker_whose_connection_goes_first_says_its_signal_all_the_same(
    bench: GatewayBench, pair: Pair, ends_ms: int, said: str
) -> None:
    """The kernel closes a dying process's files a moment before its status is known."""
    with bench.http() as http:
        assert http.infer(v1_1_0=f"break:{ends_ms}")[1]["model_version"] == "1.0.0"
    assert said in pair.agent.until(partial(_lost_once, pair.serving)).detail


def test_who_asks_a_worker_that_is_on_its_way_out_is_not_to_blame(bench: GatewayBench, pair: Pair) -> None:
    leaving = pair.agent.until_state(pair.serving, "ready").worker_pid
    with bench.http() as http:
        assert http.infer(v1_1_0="leave:3600000")[1]["model_version"] == "1.1.0"
        eventually(lambda: _watches_an_end(bench) or not alive(leaving), "its connection goes on")
        assert http.infer()[1]["model_version"] == "1.0.0"
    assert pair.agent.until(partial(_lost_once, pair.serving)).code == "crash"
    assert "errors" not in counted(pair.window(pair.serving))


def test_nothing_of_a_lost_worker_stays_open(bench: GatewayBench, pair: Pair) -> None:
    living = pair.agent.until_state(pair.refuge, "ready").worker_pid
    lost = pair.agent.until_state(pair.serving, "ready").worker_pid
    assert {f"/proc/{pid}/statm" for pid in (living, lost)} <= set(_open_files(bench))
    with bench.http() as http:
        http.infer(v1_1_0="crash")
    again = pair.agent.until(partial(_ready_with_loads, pair.serving, 2)).worker_pid
    here = sorted(f"/proc/{pid}/statm" for pid in (living, again))
    eventually(lambda: sorted(one for one in _open_files(bench) if "statm" in one) == here, "it stays open")


def _watches_an_end(bench: GatewayBench) -> bool:
    """Whether the gateway waits for the end of a process."""
    return "anon_inode:[pidfd]" in _open_files(bench)


def _open_files(bench: GatewayBench) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{bench.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(descriptor))  # noqa: PTH115 - no path
    return found


def _lost_once(target: Target, message: FromGateway) -> SlotStatus | None:
    slots = message.slots if isinstance(message, Status) else ()
    return next((one for one in slots if one.target == target and one.losses == 1), None)


def test_a_lost_worker_is_started_again(bench: GatewayBench, pair: Pair) -> None:
    before = pair.agent.until_state(pair.serving, "ready").worker_pid
    with bench.http() as http:
        http.infer(v1_1_0="crash")
        after = pair.agent.until(partial(_ready_with_loads, pair.serving, 2))
        assert after.worker_pid != before
        assert (after.losses, after.loads) == (1, 2)
        assert http.infer()[1]["model_version"] == "1.1.0"


@pytest.mark.parametrize(("what", "code"), [("crash", "crash-loop"), ("hang", "hang-loop")])
def test_a_worker_that_is_lost_again_and_again_is_given_up(
    bench: GatewayBench, pair: Pair, what: str, code: str
) -> None:
    """And every request is answered all the while; the gateway needs no agent for that."""
    with bench.http() as http:
        for _ in range(LOSSES_MAX):
            assert http.infer(v1_1_0=what)[1]["model_version"] == "1.0.0"
            since = len(pair.agent.heard)
            while http.infer(v1_1_0="ok")[1]["model_version"] != "1.1.0":
                status = pair.agent.until(_status_of(pair.serving, "ready", "failed"), since=since)
                if status.state == "failed":
                    break
        failed = pair.agent.until_state(pair.serving, "failed")
        assert (failed.code, failed.losses) == (code, LOSSES_MAX)
        assert http.infer()[1]["model_version"] == "1.0.0"


def _status_of(target: Target, *states: str) -> Any:
    def found(message: FromGateway) -> Any:
        slots = getattr(message, "slots", ())
        return next((one for one in slots if one.target == target and one.state in states), None)

    return found


def test_poison_does_not_have_two_good_releases_given_up(bench: GatewayBench, pair: Pair) -> None:
    """Requests that kill both workers, each another one, more often than a crash loop allows."""
    with bench.http() as http:
        for loads in range(2, LOSSES_MAX + 3):
            assert http.infer(id=str(loads), all_="crash")[0] == 500
            pair.agent.until(partial(_all_ready_after, loads))
        assert http.infer()[0] == 200
    states = {slot.state for one in pair.agent.heard if isinstance(one, Status) for slot in one.slots}
    assert states == {"loading", "ready"}


def _ready_with_loads(target: Target, loads: int, message: FromGateway) -> SlotStatus | None:
    slots = message.slots if isinstance(message, Status) else ()
    return next((one for one in slots if (one.target, one.state, one.loads) == (target, "ready", loads)), None)


def _all_ready_after(loads: int, message: FromGateway) -> bool:
    slots = message.slots if isinstance(message, Status) else ()
    return len(slots) == 2 and all(one.state == "ready" and one.loads >= loads for one in slots)


def test_a_failure_is_told_at_once_with_the_moment_it_was_seen(bench: GatewayBench, pair: Pair) -> None:
    since = len(pair.agent.heard)
    with bench.http() as http:
        for number in range(10):
            http.infer(v1_1_0="null" if number == 4 else "ok")
    tallied = pair.agent.until(lambda one: one if isinstance(one, Tallied) and one.window.nulls else None, since=since)
    assert tallied.target == pair.serving
    assert tallied.first_bad_monotonic_us is not None
    assert tallied.window.failed_over == 1
