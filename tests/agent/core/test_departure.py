"""What leads back: the device's own fallback, and the return that a document orders."""

from __future__ import annotations

import msgspec
import pytest

from holdfast_agent.core.events import GatewayGone
from holdfast_shared.wire.report import Window
from support.playbook import SECOND, Playbook, bad, counts, release, retry, rule, target
from support.wanted import fetches, routes

BREACHES = [
    pytest.param(counts("2", requests=40, slow=20), "guardrail-latency", id="latency"),
    pytest.param(counts("2", requests=40, errors=20), "guardrail-error-rate", id="errors"),
    pytest.param(counts("2", requests=40, nulls=20), "guardrail-null-rate", id="nulls"),
]
LOSSES = ["crash-loop", "hang-loop", "load-failed"]


def with_one_served(*more: str) -> Playbook:
    device = Playbook()
    device.connect()
    for name in ("1", *more):
        device.serve(name)
    return device


def in_trial() -> Playbook:
    """1 served, 2 in trial and confirmed."""
    device = with_one_served()
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    device.ready("1", "2")
    return device


@pytest.mark.parametrize(("breach", "code"), BREACHES)
def test_a_breach_in_a_trial_falls_back_at_once(breach: Window, code: str) -> None:
    """Condemned here; the event tells when it began and when the gateway confirmed the good slot."""
    device = in_trial()
    began_us = device.now.monotonic_us - 7
    assert routes(device.tally(breach, first_bad_us=began_us)) == ("1", "", "")
    assert (device.pipeline.state, device.slots) == ("falling_back", ("1", "", ""))
    assert device.events("fell_back") == [], "not before the gateway confirms it"
    device.wait(0.02)
    device.ready("1")
    (event,) = device.events("fell_back")
    assert (event.code, event.release, event.began_monotonic_us) == (code, target("2").release, began_us)
    assert event.at_monotonic_us == device.now.monotonic_us
    assert device.pipeline.state == "idle"
    assert [one.cause for one in device.pipeline.activations] == ["trial", "trial", "fallback"]
    assert device.reports[-1].pipelines[0].serving is not None
    assert device.reports[-1].pipelines[0].serving.release == target("1").release
    assert fetches(device.wait(100)) == [], "what was condemned here is not tried again"


def test_a_breach_after_commit_falls_back_and_leaves_previous_empty() -> None:
    """`single`, not degraded, until a standby refills it."""
    device = with_one_served("2")
    assert device.slots == ("2", "1", "")
    assert routes(device.tally(counts("2", requests=40, nulls=20))) == ("1", "", "")
    device.ready("1")
    assert (device.slots, device.pipeline.single) == (("1", "", ""), True)
    assert device.report().degraded is False
    assert fetches(device.assigned(rule("1", standby="3"))) == ["3"]
    device.fetched("3")
    assert (device.slots, device.pipeline.single) == (("1", "3", ""), False)


@pytest.mark.parametrize("code", LOSSES)
def test_a_serving_worker_that_failed_for_good_is_left(code: str) -> None:
    device = in_trial()
    assert routes(device.failed("2", code, "1")) == ("1", "", "")
    device.ready("1")
    assert [one.code for one in device.events("fell_back")] == [code]
    assert [one.code for one in device.pipeline.condemned_here] == [code]


def test_a_good_answer_of_the_slot_confirms_before_the_status_does() -> None:
    device = in_trial()
    device.tally(counts("2", requests=40, nulls=20))
    device.wait(0.003)
    device.switched("1")
    assert device.events("fell_back")[0].at_monotonic_us == device.now.monotonic_us


def test_healthy_counts_and_few_counts_are_no_breach() -> None:
    device = in_trial()
    device.tally(counts("2", requests=1000, nulls=3, errors=2, slow=5))
    device.tally(counts("2", requests=4, nulls=4))
    assert device.pipeline.state == "trial"


def test_a_tally_of_what_does_not_serve_is_passed_over() -> None:
    device = in_trial()
    device.tally(counts("1", requests=40, nulls=40))
    assert device.pipeline.state == "trial"


def test_with_nothing_good_to_fall_back_to_the_device_stays_and_says_so_once() -> None:
    """It goes on serving, is committed unproven, and the next rule's release replaces it."""
    device = Playbook()
    device.connect()
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    done = device.tally(counts("2", requests=40, nulls=20))
    assert routes(done) is None
    assert (device.slots, device.pipeline.unproven) == (("2", "", "1"), True)
    assert fetches(done) == ["1"]
    for _ in range(3):
        device.tally(counts("2", requests=40, nulls=20))
    assert len(device.events("stay")) == len(device.events("condemned_here")) == 1
    device.to_trial("1")
    device.tally(counts("1", requests=40))
    device.wait(11)
    assert device.slots == ("1", "", ""), "what was condemned is no previous"


def test_a_bad_release_that_had_to_stay_is_left_once_the_other_slot_works_again() -> None:
    device = with_one_served("2")
    device.failed("1", "crash-loop", "2")
    assert routes(device.tally(counts("2", requests=40, nulls=20))) is None
    assert device.slots == ("2", "1", "")
    assert routes(device.ready("1", "2")) == ("1", "", "")
    device.ready("1")
    assert [one.code for one in device.events("fell_back")] == ["guardrail-null-rate"]


def test_a_condemned_release_is_never_the_refuge() -> None:
    device = in_trial()
    assert routes(device.assigned(rule("2"), condemned=[bad("1")])) == ("2", "", "")
    device.tally(counts("2", requests=40, nulls=20))
    assert device.slots[0] == "2", "nothing good to turn to: it stays"


def test_urgent_and_previous_is_what_the_rule_wants() -> None:
    """Switched at acceptance: no download, no trial, no soak; told when the gateway confirms."""
    device = with_one_served("2")
    done = device.assigned(rule("2"), rule("1"), condemned=[bad("2")])
    assert routes(done) == ("1", "", "")
    assert fetches(done) == []
    accepted_us = device.now.monotonic_us
    device.wait(0.01)
    device.ready("1")
    (event,) = device.events("rolled_back")
    assert (event.release, event.detail, event.began_monotonic_us) == (target("2").release, "incident-2", accepted_us)
    assert device.pipeline.activations[-1].cause == "rollback"
    assert (device.slots, device.pipeline.single) == (("1", "", ""), True)


def test_urgent_in_a_trial_returns_to_current() -> None:
    device = in_trial()
    assert routes(device.assigned(rule("2"), rule("1"), condemned=[bad("2")])) == ("1", "", "")
    assert device.slots == ("1", "", "")


def test_urgent_with_the_target_elsewhere_uses_previous_as_a_stopgap() -> None:
    device = with_one_served("2")
    done = device.assigned(rule("3"), condemned=[bad("2")])
    assert routes(done) == ("1", "", "")
    assert fetches(device.ready("1")) == ["3"]
    assert device.events("rolled_back")[0].release == target("2").release


def test_urgent_with_nothing_to_turn_to_stays_and_adopts_the_target_without_a_trial() -> None:
    device = with_one_served()
    done = device.assigned(rule("3"), condemned=[bad("1")])
    assert routes(done) is None
    assert fetches(done) == ["3"]
    assert [one.code for one in device.events("stay")] == ["condemned"]
    assert routes(device.fetched("3")) == ("1", "", "3")
    assert routes(device.ready("1", "3")) == ("3", "", "")
    device.ready("3")
    assert (device.pipeline.state, device.slots) == ("idle", ("3", "", ""))
    assert device.events("rolled_back")[0].release == target("1").release


def test_urgent_in_a_first_trial_with_nothing_to_turn_to_fetches_the_target() -> None:
    device = Playbook()
    device.connect()
    device.assigned(rule("1"))
    device.to_trial("1")
    done = device.assigned(rule("3"), condemned=[bad("1")])
    assert routes(done) is None
    assert fetches(done) == ["3"]


def test_a_condemned_release_that_does_not_serve_moves_nobody() -> None:
    device = with_one_served("2")
    done = device.assigned(rule("2"), condemned=[bad("3")])
    assert routes(done) is None
    assert device.slots == ("2", "1", "")


def test_an_urgent_return_stops_the_fetch_under_way() -> None:
    device = with_one_served("2")
    device.assigned(rule("3"))
    assert fetches(device.assigned(rule("1"), condemned=[bad("2"), bad("3")])) == ["stop"]
    assert device.slots == ("1", "", "")


def test_without_a_gateway_the_return_is_recorded_and_told_when_it_is_back() -> None:
    device = with_one_served("2")
    device.play(GatewayGone())
    device.assigned(rule("1"), condemned=[bad("2")])
    assert device.record.pipelines["p"].serving == target("1")
    device.wait(1000)
    assert device.pipeline.state == "falling_back", "its deadline counts only while somebody could answer"
    device.connect()
    assert device.device.gateway.said[-1].routes[0].serving == target("1")
    device.ready("1")
    assert len(device.events("rolled_back")) == 1


def test_a_fallback_that_the_gateway_never_confirms_ends_at_its_deadline() -> None:
    device = in_trial()
    device.tally(counts("2", requests=40, nulls=20))
    device.wait(121)
    assert device.pipeline.state == "idle"
    assert device.events("degraded")[-1].code == "unconfirmed"


def test_a_fallback_to_a_slot_that_turns_out_damaged_is_mended_at_once() -> None:
    """Both slots are rotten: nothing waits for a confirmation that cannot come, and no start begins the wait anew."""
    device = with_one_served("2")
    assert routes(device.failed("2", "damaged-blob", "1")) == ("1", "", "")
    assert fetches(device.failed("1", "damaged-blob")) == ["2"]
    assert (device.pipeline.condemned_here, device.slots) == ((), ("1", "", "2"))
    device.to_trial("2")
    assert device.pipeline.serving == target("2")


def test_only_a_higher_attempt_lifts_what_was_condemned_here() -> None:
    device = in_trial()
    device.tally(counts("2", requests=40, nulls=20))
    device.ready("1")
    assert fetches(device.assigned(rule("2"), rule("1"), retries=[retry("2", 0)])) == []
    assert fetches(device.assigned(rule("2"), rule("1"), retries=[retry("2", 1)])) == ["2"]
    assert device.report().condemned_here == ()
    device.to_trial("2")
    device.tally(counts("2", requests=40, nulls=20))
    device.ready("1")
    assert [one.attempt for one in device.pipeline.condemned_here] == [1]
    assert fetches(device.assigned(rule("2"), rule("1"), retries=[retry("2", 1)])) == [], "the same attempt again"


def test_damaged_bytes_of_what_serves_lead_back_without_condemning() -> None:
    """And the release is fetched again, tested again, tried again."""
    device = with_one_served("2")
    assert routes(device.failed("2", "damaged-blob", "1")) == ("1", "", "")
    done = device.ready("1")
    assert device.pipeline.condemned_here == ()
    assert fetches(done) == ["2"]


def test_a_disk_that_rots_again_and_again_is_tried_ever_less_often() -> None:
    """Each time all goes well up to the trial, and nothing is condemned: without a growing wait it would go round for ever."""
    device = with_one_served("2")
    waits = []
    for _ in range(4):
        device.failed("2", "damaged-blob", "1")
        done, began = device.ready("1"), device.now.monotonic_us
        while not fetches(done):
            assert device.now.monotonic_us - began < 3600 * SECOND, "it is tried again in the end"
            done = device.wait(1)
        waits.append((device.now.monotonic_us - began) // SECOND)
        device.to_trial("2")
    assert waits[0] == 0, "once is nothing"
    assert 0 < waits[1] < waits[2] < waits[3]
    device.tally(counts("2", requests=50))
    device.wait(11)
    assert device.pipeline.attempts is None, "it was committed: whatever was wrong is over"


def test_a_breach_is_not_judged_by_a_guardrail_that_only_reports() -> None:
    device = with_one_served()
    manifest = release("2")
    quiet = tuple(msgspec.structs.replace(one, action="report") for one in manifest.guardrails)
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2", manifest=msgspec.structs.replace(manifest, guardrails=quiet))
    device.tally(counts("2", requests=40, nulls=40))
    assert device.pipeline.state == "trial"


def test_a_lost_worker_is_told_at_once() -> None:
    device = with_one_served()
    device.status({"1": "loading"}, losses=1)
    (event,) = device.events("worker_lost")
    assert event.release == target("1").release
    assert device.now.monotonic_us < 2_000 * SECOND
    assert device.slots == ("1", "", "")
