"""Rollouts through a real store: planned, driven by reports, finished, halted, taken back; and carried on after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.rollouts.scheduler import Scheduler
from holdfast_server.store import schema
from holdfast_shared import selector
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, Untrusted
from holdfast_shared.wire.command import (
    RolloutAbort,
    RolloutPause,
    RolloutPlan,
    RolloutResume,
    RolloutStart,
    WavePlan,
)
from support.rollout_bench import BOOT, Bench
from support.rollout_values import REGIONS

EU = selector.parse("region=eu-west")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.publish("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    return made


def started(bench: Bench, version: str, **fields: object) -> str:
    rollout = bench.plan(version, **fields)
    bench.command(RolloutStart(rollout=rollout))
    return rollout


def test_a_good_release_goes_through_all_waves_to_everyone(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    bench.rounds_until(rollout, "finished")
    shown = bench.rollout(rollout)
    assert set(bench.serving().values()) == {"1.1.0"}
    assert [wave["state"] for wave in shown["waves"]] == ["passed"] * len(shown["waves"])
    assert shown["previous"]["version"] == "1.0.0"
    assert all(gate["verdict"] == "pass" for wave in shown["waves"] for gate in wave["gates"])
    assert shown["waves"][-1]["gates"][0]["evidence"]["light"] >= 20
    assert len(shown["reached"]) == 30
    assert {len(one.rules) for one in bench.documents().values()} == {1}


def test_each_wave_is_a_wave(bench: Bench) -> None:
    """Only the devices of released waves have moved, at each step."""
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    for _ in range(40):
        shown = bench.rollout(rollout)
        if shown["state"] == "finished":
            break
        bench.round()
        moved = {name for name, version in bench.serving().items() if version == "1.1.0"}
        assert moved <= set(bench.rollout(rollout)["reached"])
    assert bench.rollout(rollout)["state"] == "finished"


def test_a_bad_release_is_halted_in_the_first_wave_and_all_are_back(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = started(bench, "1.2.0")
    bench.rounds_until(rollout, "halted", bad=["1.2.0"])
    bench.round()
    bench.round()
    shown = bench.rollout(rollout)
    assert set(bench.serving().values()) == {"1.0.0"}
    assert shown["waves"][0]["state"] == "failed"
    assert shown["evidence"] == {"real": 3}
    assert "guardrail-null-rate on 3" in shown["cause"]
    assert "go back to 1.0.0" in shown["cause"]
    assert {one for one in bench.devices if "1.2.0" in bench.devices[one].activated} <= set(shown["reached"])
    assert all(one.condemned for one in bench.documents().values())
    assert ("rollout halted", rollout) in bench.decisions()
    with pytest.raises(Conflict, match="condemned"):
        bench.plan("1.2.0")


def test_devices_that_do_not_fall_back_by_themselves_are_taken_back(bench: Bench) -> None:
    """Light devices that serve a release worse than the gate, without any refuge of their own."""
    bench.install("1.0.0")
    rollout = started(bench, "1.2.0", waves=(WavePlan(share=3_000, labels={"kind": "light"}),))
    for device in bench.devices.values():
        device.fall_back = lambda *_: None  # type: ignore[method-assign]
    bench.rounds_until(rollout, "halted", bad=["1.2.0"])
    before = [name for name, version in bench.serving().items() if version == "1.2.0"]
    assert before
    bench.round()
    bench.round()
    shown = bench.rollout(rollout)
    assert set(bench.serving().values()) == {"1.0.0"}
    assert shown["evidence"]["light"] >= 3
    assert [one["device"] for one in shown["returned"]] == sorted(before)
    assert all(one["back_at_monotonic_us"] > shown["halted_monotonic_us"] for one in shown["returned"])
    assert shown["devices_back"] == shown["devices_before"] == len(before)


def test_a_device_that_slept_through_it_never_begins(bench: Bench) -> None:
    bench.install("1.0.0")
    sleeper = "real-eu-west"
    awake = [name for name in bench.devices if name != sleeper]
    rollout = started(bench, "1.2.0")
    bench.rounds_until(rollout, "halted", bad=["1.2.0"], awake=awake)
    bench.round()
    assert "1.2.0" not in bench.devices[sleeper].activated


@pytest.mark.timeout(60)  # a look that counted one by one up to 10**15 would take years
def test_a_device_that_claims_absurd_numbers_holds_up_no_look(bench: Bench) -> None:
    """Of one window ingest takes ten million at most; of the sum of all that a liar sends nobody but the evidence knows."""
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    bench.round()
    now = bench.now().at
    rows = [
        {"device": "real-eu-west", "incarnation": "f" * 16, "pipeline": "digits", "window": number,
         "release_digest": bench.digests["1.1.0"], "environment": "system", "opened_at": now, "closed_at": now,
         "requests": 10**12, "errors": 2 * 10**10, "nulls": 2 * 10**10, "hangs": 0, "input_faults": 0,
         "failed_over": 0, "memory_bytes_max": 0, "latency": '{"bins":[]}', "received_at": now + number}
        for number in range(1000)
    ]  # fmt: skip
    with bench.database.write() as connection:
        connection.execute(schema.windows.insert(), rows)
    bench.scheduler.tick()
    bench.rounds_until(rollout, "finished")


def test_silence_pauses_at_the_deadline(bench: Bench) -> None:
    """Invariant 10: no wave advances on fewer than its minimum of reports."""
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    two = ["real-eu-west", "real-us-east"]
    bench.rounds_until(rollout, "paused", awake=two, limit=100)
    shown = bench.rollout(rollout)
    assert shown["waves"][0]["state"] == "released"
    assert "no verdict by its deadline: 2 of at least 3" in shown["cause"]
    assert {rule.mode for rule in bench.document("eu-west").rules} == {"keep", "serve"}
    bench.command(RolloutResume(rollout=rollout))
    bench.rounds_until(rollout, "finished")


def test_a_paused_rollout_waits_and_an_aborted_one_returns(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    bench.round()
    bench.command(RolloutPause(rollout=rollout))
    for _ in range(8):
        bench.round()
    assert bench.rollout(rollout)["state"] == "paused"
    assert bench.serving()["real-eu-west"] == "1.1.0"
    bench.command(RolloutAbort(rollout=rollout))
    bench.round()
    assert set(bench.serving().values()) == {"1.0.0"}
    assert not any(one.condemned for one in bench.documents().values())


def test_a_new_scheduler_carries_on(bench: Bench) -> None:
    """Its memory is empty, and what was counted is counted again from the tables."""
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0")
    for _ in range(60):
        if bench.rollout(rollout)["state"] == "finished":
            break
        bench.scheduler = Scheduler(bench, boot=BOOT)
        bench.round()
    assert bench.rollout(rollout)["state"] == "finished"
    passed = [what for what, subject in bench.decisions() if subject == rollout and "passed" in what]
    assert len(passed) == len(set(passed))


def test_a_look_with_nothing_new_writes_nothing(bench: Bench) -> None:
    bench.install("1.0.0")
    started(bench, "1.1.0")
    bench.round()
    bench.scheduler.tick()
    commits: list[int] = []
    bench.database.after_commit(lambda: commits.append(1))
    for _ in range(5):
        bench.scheduler.tick()
    assert not commits


def test_a_region_that_gets_its_first_device_gets_its_document(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.enrol("first", "sa-north", kind="real")
    bench.scheduler.tick()
    assert bench.document("sa-north").rules[0].release == bench.document("eu-west").rules[0].release


def test_two_regions_apart_then_a_segment_left_alone(bench: Bench) -> None:
    bench.install("1.0.0")
    first = started(bench, "1.1.0", segment=EU)
    with pytest.raises(Conflict, match="overlaps"):
        bench.plan("1.3.0")
    other = started(bench, "1.3.0", segment=selector.parse("region=us-east"))
    bench.rounds_until(first, "finished")
    bench.rounds_until(other, "finished")
    by_region = {name: bench.serving()[f"real-{name}"] for name in REGIONS}
    assert by_region == {"eu-west": "1.1.0", "us-east": "1.3.0", "ap-south": "1.0.0"}
    assert bench.fleet()["eu-west"]["serving"] == {"1.1.0": 10}


# ---------------------------------------------------------------- rollbacks
def test_a_segment_rollback_moves_exactly_the_segment(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.install("1.1.0")
    done = bench.roll_back("1.1.0", EU, "ann", "cid")
    assert (done["state"], done["requested_by"], done["approved_by"], done["to"]) == ("accepted", "ann", "cid", "1.0.0")
    assert done["devices_before"] == 10
    assert done["devices_back"] == 0
    bench.clock.passes(0.5)
    bench.round()
    after = bench.serving()
    for name, device in bench.devices.items():
        assert after[name] == ("1.0.0" if device.labels["region"] == "eu-west" else "1.1.0")
    shown = bench.rollback(done["id"])
    assert shown["devices_back"] == 10
    times = [one["back_at_monotonic_us"] - shown["accepted_monotonic_us"] for one in shown["devices"]]
    assert all(0 < time < 5_000_000 for time in times)


def test_one_signature_waits_for_a_second_person(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.install("1.1.0")
    before = bench.documents()
    waiting = bench.roll_back("1.1.0", EU, "bob")
    assert waiting["state"] == "waiting"
    assert bench.documents() == before
    with pytest.raises(Untrusted, match="cannot approve"):
        bench.approve(waiting, "bob")
    with pytest.raises(Untrusted, match="approver must sign"):
        bench.approve(waiting, "ann")
    with pytest.raises(Conflict, match="another request"):
        bench.approve({**waiting, "request": "sha256:" + "0" * 64}, "cid")
    assert bench.approve(waiting, "cid")["state"] == "accepted"
    with pytest.raises(Conflict, match="already"):
        bench.approve(waiting, "cid")
    assert [what for what, subject in bench.decisions() if subject == waiting["id"]] == [
        "rollback requested",
        "rollback accepted",
    ]


def test_a_request_that_nobody_approves_is_refused_in_the_end(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.install("1.1.0")
    waiting = bench.roll_back("1.1.0", EU, "ann")
    bench.clock.passes(86_500)
    bench.scheduler.tick()
    assert bench.rollback(waiting["id"])["state"] == "refused"


def test_a_rollback_stops_a_rollout_of_the_release(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = started(bench, "1.1.0", waves=(WavePlan(share=10_000),))
    bench.round()
    bench.roll_back("1.1.0", EU, "ann", "cid")
    assert bench.rollout(rollout)["state"] == "paused"
    bench.round()
    assert {bench.serving()[f"real-{name}"] for name in ("us-east", "ap-south")} == {"1.1.0"}
    assert bench.serving()["real-eu-west"] == "1.0.0"
    bench.command(RolloutResume(rollout=rollout))
    bench.rounds_until(rollout, "finished")
    assert bench.serving()["light-1"] == "1.0.0"  # of eu-west: the rest went on without it
    assert sorted(set(bench.serving().values())) == ["1.0.0", "1.1.0"]


@pytest.mark.parametrize(
    ("act", "signers", "error", "field"),
    [
        (lambda b: b.plan("9.9.9"), (), Missing, "version"),
        (lambda b: b.plan("1.1.0", segment=selector.parse("region=eu-wset")), (), Malformed, "segment"),
        (lambda b: b.command(RolloutPlan(pipeline="digts", version="1.1.0")), (), Missing, "version"),
        (lambda b: b.command(RolloutStart(rollout="r-none")), (), Missing, "rollout"),
        (lambda b: b.command(RolloutPlan(pipeline="digits", version="1.1.0"), "cid"), (), Untrusted, "signatures"),
        (lambda b: b.command(RolloutPlan(pipeline="digits", version="1.1.0"), "eve"), (), Untrusted, "signatures"),
        (lambda b: b.roll_back("1.1.0", selector.parse("site=x"), "ann", "cid"), (), Malformed, "segment"),
        (lambda b: b.roll_back("1.1.0", EU, "cid"), (), Untrusted, "signatures"),
        (lambda b: b.roll_back("1.0.0", EU, "ann", "cid"), (), Malformed, "to"),
        (lambda b: b.roll_back("1.0.0", EU, "ann", "cid", to="7.0.0"), (), Missing, "to"),
        (lambda b: b.roll_back("1.0.0", EU, "ann", "cid", to="1.3.0"), (), Malformed, "to"),  # it never passed a gate
    ],
)
def test_a_refused_command_changes_nothing(
    bench: Bench, act: object, signers: object, error: type[HoldfastError], field: str
) -> None:
    bench.install("1.0.0")
    before = (bench.documents(), bench.decisions())
    with pytest.raises(error) as caught:
        act(bench)  # type: ignore[operator]
    assert caught.value.field == field
    assert caught.value.next_step
    assert (bench.documents(), bench.decisions()) == before
