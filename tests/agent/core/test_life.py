"""What leads forward: fetch, self-test, trial, commit; and everything that ends it on the way."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from holdfast_agent.core import backoff, deadlines
from holdfast_agent.core.commands import Save, Tell
from holdfast_gateway.control import CloseWindows, RetryLoad, SlotStatus, Status
from holdfast_gateway.losses import LATE_MAX
from holdfast_shared.wire.assignment import Assignment, Rule
from support.playbook import BEGAN, PIPELINE, SECOND, Playbook, assignment, bad, counts, digest, release, rule, target
from support.wanted import fetches, garbage, routes


@pytest.fixture
def device() -> Playbook:
    playbook = Playbook()
    playbook.connect()
    return playbook


def test_a_first_install_goes_from_document_to_commit(device: Playbook) -> None:
    """Fetch, self-test without requests, trial without a refuge, commit after the soak with enough requests."""
    done = device.assigned(rule("1"))
    assert isinstance(done[0], Save)
    assert fetches(done) == ["1"]
    assert routes(done) is None
    assert routes(device.fetched("1")) == ("", "", "1")
    assert device.pipeline.state == "self_testing"
    assert routes(device.ready("1")) == ("1", "", "")
    assert device.pipeline.state == "trial"
    device.ready("1")
    device.tally(counts("1", requests=20))
    device.wait(9.9)
    assert device.pipeline.state == "trial"
    device.wait(0.2)
    assert (device.pipeline.state, device.slots, device.pipeline.unproven) == ("idle", ("1", "", ""), False)
    assert [one.cause for one in device.pipeline.activations] == ["trial"]
    assert [one.kind for one in device.events()] == ["restarted", "accepted", "staged", "activated", "committed"]


def test_in_a_trial_the_old_release_is_the_refuge_and_becomes_previous(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    assert routes(device.fetched("2")) == ("1", "", "2")
    assert routes(device.ready("1", "2")) == ("2", "1", "")
    device.ready("1", "2")
    device.tally(counts("2", requests=30))
    done = device.wait(11)
    assert device.slots == ("2", "1", "")
    assert routes(done) is None, "a commit changes nothing about who answers"
    assert garbage(done) == [frozenset({digest("1"), digest("2")})]


def test_the_soak_begins_when_the_gateway_confirms(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.fetched("1")
    device.ready("1")
    device.wait(60)
    assert device.pipeline.state == "trial"
    assert device.events("activated") == []
    device.ready("1")
    device.wait(20)
    assert device.pipeline.state == "idle"


def test_too_few_requests_commit_unproven_after_the_gateway_was_asked(device: Playbook) -> None:
    """And windows counted meanwhile are enough to prove it after all."""
    device.assigned(rule("1"))
    device.to_trial("1")
    done = device.wait(10.5)
    assert any(isinstance(one, Tell) and isinstance(one.message, CloseWindows) for one in done)
    assert device.pipeline.state == "trial"
    device.wait(3)
    assert (device.pipeline.state, device.pipeline.unproven) == ("idle", True)
    assert device.events("committed")[-1].code == "unproven"
    device.windows(counts("1", requests=25, window=1, at=device.now.at))
    assert device.pipeline.unproven is False


def test_windows_that_come_when_asked_commit_at_once(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.to_trial("1")
    device.wait(10.5)
    device.windows(counts("1", requests=25, window=1, at=device.now.at))
    assert (device.pipeline.state, device.pipeline.unproven) == ("idle", False)


def test_a_newer_document_with_an_equal_decision_disturbs_nothing(device: Playbook) -> None:
    device.assigned(rule("1"))
    assert fetches(device.assigned(rule("1"), condemned=[bad("3")])) == []
    device.to_trial("1")
    done = device.assigned(rule("1"), rule("2"))
    assert routes(done) is None
    assert device.pipeline.state == "trial"


def test_a_changed_decision_stops_the_fetch_and_begins_the_other(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    assert fetches(device.assigned(rule("3"))) == ["stop", "3"]
    device.fetched("2")
    assert device.pipeline.state == "fetching", "what the old fetch still says is late, and changes nothing"


def test_a_pause_stops_the_fetch_and_keeps_the_trial(device: Playbook) -> None:
    """`keep` applies to those that serve the release or have it in trial; the others fall through to the next rule."""
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    assert fetches(device.assigned(rule("2", "keep"), rule("1"))) == ["stop"]
    assert device.pipeline.state == "idle"
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    assert routes(device.assigned(rule("2", "keep"), rule("1"))) is None
    assert device.pipeline.state == "trial"


def test_a_superseded_trial_returns_to_current(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    done = device.assigned(rule("1"))
    assert routes(done) == ("1", "", "")
    assert (device.pipeline.state, device.slots) == ("idle", ("1", "", ""))
    assert device.pipeline.activations[-1].cause == "superseded"


def test_a_superseded_first_install_is_not_dropped(device: Playbook) -> None:
    """There is nothing good to go back to: it serves on until the other release is here."""
    device.assigned(rule("1"))
    device.to_trial("1")
    assert routes(device.assigned(rule("2"))) is None
    done = device.wait(15)
    assert device.slots[0] == "1"
    assert fetches(done) == ["2"]


def test_no_document_or_no_rule_keeps_what_runs(device: Playbook) -> None:
    device.serve("1")
    assert routes(device.assigned()) is None
    assert device.slots == ("1", "", "")


def test_a_failed_fetch_condemns_nothing_and_waits_longer_each_time(device: Playbook) -> None:
    device.assigned(rule("1"))
    waits = []
    for _ in range(4):
        done = device.not_fetched("1", draw=0.999)
        assert fetches(done) == []
        began = device.now.monotonic_us
        while not fetches(device.wait(0.5)):
            assert device.now.monotonic_us - began < 120_000_000
        waits.append((device.now.monotonic_us - began) / 1e6)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(4, abs=0.6)
    assert waits[-1] == pytest.approx(32, abs=0.6)
    assert device.pipeline.condemned_here == ()
    assert [one.code for one in device.events("fetch_failed")] == ["fetch-unreachable"] * 4


def test_the_backoff_ends_with_the_decision(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.not_fetched("1")
    assert fetches(device.assigned(rule("2"))) == ["2"]


def test_a_failed_self_test_condemns_here_and_the_next_rule_holds(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.fetched("2")
    done = device.failed("2", "self-test-failed", "1")
    assert routes(done) == ("1", "", "")
    assert [one.code for one in device.pipeline.condemned_here] == ["self-test-failed"]
    assert [one.kind for one in device.events() if one.code] == ["self_test_failed", "condemned_here"]
    assert len(device.pipeline.activations) == 1
    assert fetches(device.wait(100)) == [], "what was condemned here is not tried again"


def test_bytes_that_rotted_condemn_nothing_and_are_fetched_again(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    device.fetched("2")
    device.failed("2", "damaged-blob", "1")
    assert device.pipeline.condemned_here == ()
    assert fetches(device.wait(10)) == ["2"]


@pytest.mark.parametrize("code", ["not-supported", "damaged-blob"])
def test_what_fails_for_no_fault_of_its_own_is_tried_ever_less_often(device: Playbook, code: str) -> None:
    """Fetch and self-test would go round for ever; the waits grow, over restarts too, and nothing is condemned."""
    device.serve("1")
    device.assigned(rule("2"), rule("1"))
    waits = []
    for _ in range(5):
        device.fetched("2")
        device.failed("2", code, "1")
        device.start(release("1"))
        device.connect()
        device.ready("1")
        began = device.now.monotonic_us
        while not fetches(device.wait(1)):
            assert device.now.monotonic_us - began < 3600 * SECOND
        waits.append(device.now.monotonic_us - began)
    assert all(longer > 1.5 * shorter for shorter, longer in pairwise(waits))
    assert device.pipeline.condemned_here == ()


def test_a_gateway_that_does_not_answer_a_self_test_condemns_nothing(device: Playbook) -> None:
    device.assigned(rule("1"))
    device.fetched("1")
    device.wait((deadlines.self_tested_by(release("1"), BEGAN) - BEGAN.monotonic_us) / SECOND + 1)
    assert device.pipeline.condemned_here == ()
    assert device.events("fetch_failed")[-1].code == "self-test-unanswered"


def test_a_self_test_that_is_not_answered_is_told_with_how_its_worker_was_last_lost(device: Playbook) -> None:
    device.connect()
    device.assigned(rule("1"))
    device.fetched("1")
    lost = SlotStatus(
        pipeline="p", target=target("1"), state="loading", code="crash", detail="killed by SIGBUS", losses=1
    )
    device.said(Status(serial=0, slots=(lost,), gateway=device.gateway))
    device.wait((deadlines.self_tested_by(release("1"), BEGAN) - BEGAN.monotonic_us) / SECOND + 1)
    told = device.events("fetch_failed")[-1]
    assert (told.code, told.detail) == ("self-test-unanswered", "killed by SIGBUS")


def test_a_candidate_that_is_always_late_is_condemned_and_not_given_up_before_the_gateway_does(
    device: Playbook,
) -> None:
    device.assigned(rule("1"))
    device.fetched("1")
    device.wait(LATE_MAX * release("1").limits.load_deadline_s + 1)
    assert device.pipeline.state == "self_testing"
    device.failed("1", "load-deadline")
    assert [one.code for one in device.pipeline.condemned_here] == ["load-deadline"]


def test_a_standby_refills_an_empty_previous_also_after_a_first_install(device: Playbook) -> None:
    device.assigned(rule("2", standby="1"))
    device.to_trial("2")
    device.tally(counts("2", requests=30))
    assert fetches(device.wait(11)) == ["1"]
    done = device.fetched("1")
    assert device.slots == ("2", "1", "")
    assert routes(done) == ("2", "1", "")
    assert device.pipeline.single is False


def test_what_is_only_staged_is_tested_and_never_serves(device: Playbook) -> None:
    device.serve("1")
    assert fetches(device.assigned(rule("2", "stage"), rule("1"))) == ["2"]
    assert routes(device.fetched("2")) == ("1", "", "2")
    done = device.ready("1", "2")
    assert routes(done) == ("1", "", "")
    assert all(digest("2") in keep for keep in garbage(done)), "it stays on disk"
    assert device.pipeline.state == "idle"
    assert fetches(device.wait(100)) == []


def test_remove_empties_every_slot(device: Playbook) -> None:
    device.serve("1")
    done = device.document(assignment(_remove(), seq=50))
    assert device.slots == ("", "", "")
    assert routes(done) == ("", "", "")
    assert device.events("removed")[-1].release == target("1").release
    assert garbage(done) == [frozenset()]


def _remove() -> Rule:
    return Rule(mode="remove")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (assignment(rule("2"), seq=9, critical=["teleport"]), "teleport"),
        (assignment(rule("2"), seq=9, floor="1.3.0"), "below the floor"),
        (assignment(rule("2"), seq=9, not_after=1), "expired"),
    ],
)
def test_obstacles_stop_going_forward_and_are_said(device: Playbook, document: Assignment, why: str) -> None:
    device.serve("1")
    assert fetches(device.document(document)) == []
    assert why in device.report().waiting_for
    assert device.slots == ("1", "", "")


def test_one_download_at_a_time(device: Playbook) -> None:
    device.document(assignment(rule("1"), seq=1, pipeline="a"))
    done = device.document(assignment(rule("2"), seq=1, pipeline="b"))
    assert fetches(done) == []
    assert device.device.live_of("b").waiting_for == "the download for a goes first"


def test_a_download_gives_way_to_what_replaces_a_condemned_release(device: Playbook) -> None:
    """A large download over a slow link may take hours: the bad release would serve all the while. It goes on afterwards."""
    device.serve("1")
    assert fetches(device.document(assignment(rule("4"), seq=1, pipeline="a"))) == ["4"]
    assert fetches(device.assigned(rule("3"), condemned=[bad("1")])) == ["stop", "3"]
    assert device.device.live_of("a").waiting_for == f"the download for {PIPELINE} goes first"
    assert fetches(device.document(assignment(rule("5"), seq=2, pipeline="a"))) == [], "nor back again"
    assert fetches(device.fetched("3")) == ["5"]
    assert routes(device.ready("1", "3")) == ("3", "", "")


def test_a_wait_of_hours_ends_when_what_serves_is_condemned(device: Playbook) -> None:
    """The target failed while nothing was urgent; and while it is, no wait is longer than minutes."""
    device.serve("1")
    device.assigned(rule("3"))
    for attempt in range(12):
        device.not_fetched("3", draw=0.99)
        device.wait(10 * 2**attempt)
    device.not_fetched("3", draw=0.99)
    assert fetches(device.wait(3600)) == []
    assert fetches(device.assigned(rule("3"), condemned=[bad("1")])) == ["3"]
    assert fetches(device.not_fetched("3", draw=0.99)) == [], "it waits, and does not spin"
    assert fetches(device.wait(backoff.URGENT_CAP_US / SECOND + 1)) == ["3"]


def test_a_failed_refuge_is_degraded_and_started_again_from_time_to_time(device: Playbook) -> None:
    device.serve("1")
    device.serve("2")
    device.failed("1", "crash-loop", "2")
    assert device.slots == ("2", "1", "")
    assert device.report().degraded is True
    assert [one.code for one in device.events("degraded")] == ["crash-loop"]
    done = device.wait(121)
    assert [one.message for one in done if isinstance(one, Tell) and isinstance(one.message, RetryLoad)] == [
        RetryLoad(target=target("1").key)
    ]


def test_a_damaged_slot_is_repaired_and_loaded_again(device: Playbook) -> None:
    device.serve("1")
    assert fetches(device.failed("1", "damaged-blob")) == ["1"]
    done = device.fetched("1")
    assert Tell(RetryLoad(target=target("1").key)) in done
    assert device.slots == ("1", "", "")
    assert fetches(device.failed("1", "damaged-blob")) == [], "it waits before it repairs again"


def test_an_agent_that_is_too_old_stays(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    device.fetched("2", manifest=msgspec.structs.replace(release("2"), agent_version_min="9.0.0"))
    assert device.pipeline.state == "staged"
    assert "9.0.0" in device.report().waiting_for
    assert device.device.record.pipeline(PIPELINE).current == target("1")
