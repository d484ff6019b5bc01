"""Which documents are accepted: verified before parsed, for this device, in order; everything else changes nothing."""

from __future__ import annotations

import base64
import json

import pytest

from holdfast_agent.core.commands import Save
from holdfast_agent.core.device import PIPELINES_MAX
from holdfast_shared import signing, strict_json
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX, TYPE, Assignment, Scope
from support.playbook import DIRECTOR, STRANGER, Playbook, assignment, bad, counts, own, rule, signed
from support.wanted import fetches, routes

GOOD = assignment(rule("1"), seq=5)


@pytest.fixture
def device() -> Playbook:
    playbook = Playbook()
    playbook.connect()
    return playbook


def test_an_accepted_document_and_its_order_are_stored_in_one_write(device: Playbook) -> None:
    done = device.document(GOOD)
    saves = [one for one in done if isinstance(one, Save)]
    assert len(saves) == 1
    (stored,) = saves[0].record.documents
    assert (stored.scope, stored.epoch, stored.seq, stored.envelope) == ("region/eu", 1, 5, signed(GOOD))


def _raw(payload: bytes) -> bytes:
    return signing.sign(payload, TYPE, [DIRECTOR])


def _with(document: Assignment, **fields: object) -> bytes:
    return _raw(json.dumps(json.loads(strict_json.encode(document)) | fields).encode())


def _tampered() -> bytes:
    envelope = json.loads(signed(GOOD))
    payload = base64.b64decode(envelope["payload"]).replace(b'"seq":5', b'"seq":6')
    return json.dumps(envelope | {"payload": base64.b64encode(payload).decode()}).encode()


REFUSED = [
    pytest.param(signed(GOOD, STRANGER), "untrusted", id="a stranger's signature"),
    pytest.param(_tampered(), "untrusted", id="changed after it was signed"),
    pytest.param(strict_json.encode(GOOD), "malformed", id="not signed at all"),
    pytest.param(b"", "malformed", id="nothing"),
    pytest.param(b"x" * (ENVELOPE_BYTES_MAX + 1), "malformed", id="too large"),
    pytest.param(_with(GOOD, fleet="g"), "untrusted", id="another fleet"),
    pytest.param(_with(GOOD, epoch=2), "untrusted", id="an epoch in which the signer may not direct"),
    pytest.param(_with(GOOD, scope={"region": "us"}), "untrusted", id="another region under our topic"),
    pytest.param(_with(GOOD, pipeline="q"), "untrusted", id="another pipeline under our topic"),
    pytest.param(_with(GOOD, seq=-1), "malformed", id="a negative order"),
    pytest.param(_with(GOOD, seq=2**53), "malformed", id="an order past 2**53"),
    pytest.param(_with(GOOD, rules=[{"mode": "serve"}]), "malformed", id="a rule without a release"),
    pytest.param(_raw(strict_json.encode(GOOD).replace(b'"seq":5', b'"seq":5,"seq":7')), "malformed", id="a key twice"),
]


@pytest.mark.parametrize(("envelope", "code"), REFUSED)
def test_what_is_refused_changes_nothing_and_is_told(device: Playbook, envelope: bytes, code: str) -> None:
    before = (device.device.documents, device.device.record.documents, device.pipeline)
    done = device.envelope(envelope)
    assert (device.device.documents, device.device.record.documents, device.pipeline) == before
    assert fetches(done) == []
    assert [one.code for one in device.events("refused")] == [code]


def test_a_flood_of_bad_documents_is_told_once_a_minute(device: Playbook) -> None:
    for _ in range(50):
        device.envelope(b"x")
    assert len(device.events("refused")) == 1
    device.envelope(signed(GOOD, STRANGER))
    assert device.events("refused")[-1].code == "untrusted", "one kind of alarm does not silence another"
    device.wait(61)
    device.envelope(b"x")
    assert len(device.events("refused")) == 3


def test_an_older_or_doubled_document_is_no_error_and_changes_nothing(device: Playbook) -> None:
    device.document(GOOD)
    for late in (GOOD, assignment(rule("2"), seq=4), assignment(rule("2"), seq=9, epoch=0)):
        done = device.envelope(signed(late)) if late.epoch else []
        assert not [one for one in done if isinstance(one, Save)]
    assert device.device.documents_of("p") == (GOOD,)
    assert device.events("refused") == []


def test_one_order_with_two_contents_is_an_alarm_and_the_first_holds(device: Playbook) -> None:
    device.document(GOOD)
    device.document(assignment(rule("2"), seq=5))
    assert [one.code for one in device.events("refused")] == ["equivocation"]
    assert device.device.documents_of("p") == (GOOD,)


def test_a_device_document_comes_before_its_regions(device: Playbook) -> None:
    device.document(assignment(rule("1"), seq=1))
    assert fetches(device.document(assignment(rule("2"), seq=1, scope=Scope(device="d-1")))) == ["stop", "2"]


def test_an_unknown_critical_field_blocks_going_forward_but_not_going_back(device: Playbook) -> None:
    device.serve("1")
    device.serve("2")
    document = assignment(rule("3"), seq=50, condemned=[bad("2")], critical=["teleport"])
    done = device.document(document)
    assert routes(done) == ("1", "", "")
    assert fetches(device.ready("1")) == []
    assert "teleport" in device.report().waiting_for


def test_an_unknown_field_that_is_not_critical_is_ignored(device: Playbook) -> None:
    assert fetches(device.envelope(_with(GOOD, teleport=True))) == ["1"]


def test_old_condemnations_hold_after_a_move_until_the_new_regions_document_is_here(device: Playbook) -> None:
    """And going back to the old region, its old documents are still old."""
    device.serve("1")
    device.document(assignment(rule("1"), seq=50, condemned=[bad("2")]))
    device.own = own("us")
    device.start()
    device.connect()
    us = Scope(region="us")
    device.document(assignment(rule("2"), seq=1, scope=us, pipeline="q"))
    assert device.device.documents_of("p")[0].condemned == (bad("2"),)
    assert device.device.documents_of("p")[0].rules == ()
    device.document(assignment(rule("2"), seq=1, scope=us))
    assert device.device.documents_of("p") == (assignment(rule("2"), seq=1, scope=us),)
    device.own = own("eu")
    device.start()
    device.connect()
    device.document(assignment(rule("3"), seq=49))
    assert all(one.rules == () for one in device.device.documents_of("p"))
    assert fetches(device.document(assignment(rule("1"), seq=50, condemned=[bad("2")]))) == []
    assert device.device.documents_of("p")[0].rules == (rule("1"),)


def test_a_device_holds_a_limited_number_of_pipelines(device: Playbook) -> None:
    for number in range(PIPELINES_MAX + 1):
        device.document(assignment(rule("1"), seq=1, pipeline=f"p{number}"))
    assert len(device.device.names) == PIPELINES_MAX
    assert [one.code for one in device.events("refused")] == ["too-many-pipelines"]


def test_a_bad_document_disturbs_no_trial(device: Playbook) -> None:
    device.document(GOOD)
    device.to_trial("1")
    for envelope in (b"{", signed(assignment(rule("2"), seq=99), STRANGER)):
        assert routes(device.envelope(envelope)) is None
    device.tally(counts("1", requests=30))
    device.wait(11)
    assert device.slots[0] == "1"
