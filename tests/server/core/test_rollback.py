"""Two people, told apart by name; and which failures the server answers without them."""

from __future__ import annotations

import msgspec
import pytest

from holdfast_server.core import rollback as rules
from holdfast_server.core.authority import Authority, authority_of
from holdfast_server.core.rollback import Rollback, Signers, State
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Untrusted
from support.rollout_values import PIPELINE, digest, placed, ref

ASKED = Rollback(
    id="b-1", pipeline=PIPELINE, release=ref("1.3.0"), segment=(), reason="worse on night images", requested_by="ann",
    request=digest("request"), requested_at=1, to=placed("1.1.0"),
)  # fmt: skip


def signers(operators: str = "", approvers: str = "") -> Signers:
    return Signers(operators=frozenset(operators.split()), approvers=frozenset(approvers.split()))


@pytest.mark.parametrize(
    ("people", "asks", "approves"),
    [
        (signers("ann"), "ann", None),
        (signers("ann", "bob"), "ann", "bob"),
        (signers("ann", "ann"), "ann", None),
        (signers("ann bob", "bob"), "ann", "bob"),
        (signers("ann bob", "ann bob"), "ann", "bob"),
        (signers("ann", "ann bob"), "ann", "bob"),
    ],
)
def test_who_asks_and_who_approves(people: Signers, asks: str, approves: str | None) -> None:
    assert rules.requester(people) == asks
    assert rules.second_person(people, asks) == approves


@pytest.mark.parametrize(
    ("people", "error"), [(signers("", "bob"), Untrusted), (signers(), Untrusted), (signers("ann bob"), Malformed)]
)
def test_without_one_operator_nobody_asks(people: Signers, error: type[HoldfastError]) -> None:
    with pytest.raises(error) as caught:
        rules.requester(people)
    assert caught.value.next_step


def test_a_second_person_accepts_once() -> None:
    done = rules.accepted(ASKED, by="bob", at=5, monotonic_us=6, devices=("d-1",))
    assert (done.state, done.approved_by, done.accepted_monotonic_us) == (State.ACCEPTED, "bob", 6)
    with pytest.raises(Conflict, match="accepted already"):
        rules.accepted(done, by="eve", at=7, monotonic_us=8, devices=())


def test_nobody_approves_their_own_request() -> None:
    with pytest.raises(Untrusted, match="cannot approve it"):
        rules.accepted(ASKED, by="ann", at=5, monotonic_us=6, devices=())


def test_an_approval_is_of_exactly_the_bytes_that_were_asked() -> None:
    rules.check_request(ASKED, digest("request"))
    with pytest.raises(Conflict, match="another request"):
        rules.check_request(ASKED, digest("other"))


def test_a_request_of_yesterday_is_over() -> None:
    day = rules.WAITING_MAX_S * 1_000_000
    assert not rules.overdue(ASKED, 1 + day)
    assert rules.overdue(ASKED, 2 + day)
    assert not rules.overdue(msgspec.structs.replace(ASKED, state=State.ACCEPTED), 2 + day)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("crash-loop", Authority.AUTOMATIC),
        ("guardrail-null-rate", Authority.AUTOMATIC),
        ("latency_ms_p99", Authority.AUTOMATIC),
        ("drift", Authority.MANUAL),
        ("no-space", Authority.MANUAL),
        ("something-new", Authority.MANUAL),
    ],
)
def test_the_server_acts_alone_only_on_what_is_objective(mode: str, expected: Authority) -> None:
    assert authority_of(mode) is expected
