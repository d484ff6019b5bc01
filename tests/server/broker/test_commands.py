"""Commands by MQTT, through a real broker: carried out once, answered once, and only where an answer may go."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_cli import broker as asking
from holdfast_cli.failures import Refused
from holdfast_server.broker.session import BrokerSession
from holdfast_server.store import outbox
from holdfast_shared import selector, signing, strict_json, topics
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.wire.command import TYPE, Act, Approve, Command, Rollback
from support.broker_peer import Peer, running_session
from support.mosquitto import Mosquitto, running_mosquitto
from support.reporting import FLEET, PIPELINE, REGION, eventually, everything
from support.rollout_bench import KEYS, Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with running_mosquitto() as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish("1.0.0", "1.1.0")
    made.install("1.0.0")
    made.install("1.1.0")
    yield made
    made.database.close()


@pytest.fixture
def desk(bench: Bench, mosquitto: Mosquitto) -> Iterator[BrokerSession]:
    with running_session(bench, mosquitto) as made:
        yield made


def ask(mosquitto: Mosquitto, verb: str, message: bytes) -> Any:
    return asking.ask(BrokerAddress.parse(mosquitto.url), fleet=FLEET, verb=verb, message=message)


def everything_published(bench: Bench) -> bool:
    with bench.database.read() as connection:
        return not outbox.stored_documents(connection, unpublished=True)


def test_a_rollback_with_both_signatures_acts(bench: Bench, desk: BrokerSession, mosquitto: Mosquitto) -> None:
    eventually(lambda: everything_published(bench))
    with Peer(mosquitto, topics.region_assignment(FLEET, REGION, PIPELINE)) as device:
        before = device.next().payload
        done = ask(mosquitto, "rollback", signed(bench, rollback(), "ann", "cid"))
        after = device.next().payload
    assert (done["ok"], done["state"], done["requested_by"], done["approved_by"]) == (True, "accepted", "ann", "cid")
    assert after != before
    assert bench.document(REGION).condemned
    assert not bench.document("us-east").condemned


def test_a_rollback_with_one_signature_waits_for_another_person(
    bench: Bench, desk: BrokerSession, mosquitto: Mosquitto
) -> None:
    before = bench.documents()
    waiting = ask(mosquitto, "rollback", signed(bench, rollback(), "bob"))
    assert waiting["state"] == "waiting"
    assert bench.documents() == before
    approval = Approve(rollback=waiting["id"], request=waiting["request"])
    with pytest.raises(Refused) as refused:
        ask(mosquitto, "approve", signed(bench, approval, "bob"))
    assert refused.value.code == "untrusted"
    assert bench.documents() == before
    assert ask(mosquitto, "approve", signed(bench, approval, "cid"))["state"] == "accepted"
    assert bench.document(REGION).condemned


def test_a_repeated_command_acts_once_and_says_so(bench: Bench, desk: BrokerSession, mosquitto: Mosquitto) -> None:
    message = signed(bench, rollback(), "ann", "cid")
    ask(mosquitto, "rollback", message)
    eventually(lambda: everything_published(bench))
    before = everything(bench.database)
    with pytest.raises(Refused) as refused:
        ask(mosquitto, "rollback", message)
    assert (refused.value.code, refused.value.field) == ("already-done", "id")
    assert everything(bench.database) == before


def test_a_command_that_asks_for_no_answer_is_carried_out(
    bench: Bench, desk: BrokerSession, mosquitto: Mosquitto
) -> None:
    with Peer(mosquitto) as operator:
        operator.publish(topics.command(FLEET, "rollback"), signed(bench, rollback(), "ann", "cid"), qos=0)
    eventually(lambda: everything(bench.database)["rollbacks"])


def test_nobody_makes_the_server_publish_elsewhere(bench: Bench, desk: BrokerSession, mosquitto: Mosquitto) -> None:
    """The answer topic may be another device's; the command is carried out, and the answer goes nowhere."""
    elsewhere = topics.region_assignment(FLEET, REGION, "forged")
    with Peer(mosquitto, elsewhere, f"holdfast/{FLEET}/answer/+") as peer:
        peer.publish(topics.command(FLEET, "rollback"), b"nonsense", ResponseTopic=elsewhere)
        peer.publish(topics.command(FLEET, "rollback"), b"nonsense", ResponseTopic=f"holdfast/{FLEET}/answer/me")
        heard = peer.next()
    assert heard.topic == f"holdfast/{FLEET}/answer/me"
    assert peer.heard.empty()


def test_an_answer_carries_its_question(bench: Bench, desk: BrokerSession, mosquitto: Mosquitto) -> None:
    with Peer(mosquitto, f"holdfast/{FLEET}/answer/me") as peer:
        for mark in (b"one", b"two"):
            peer.publish(
                topics.command(FLEET, "rollback"), b"{}",
                ResponseTopic=f"holdfast/{FLEET}/answer/me", CorrelationData=mark,
            )  # fmt: skip
        answers = [peer.next(), peer.next()]
    assert [getattr(answer.properties, "CorrelationData", None) for answer in answers] == [b"one", b"two"]
    assert all(set(json.loads(answer.payload)["error"]) == {"code", "field", "message", "next"} for answer in answers)


@pytest.mark.parametrize("name", ["truncated", "unsigned", "a stranger's", "another verb", "a typo in the segment"])
def test_a_command_that_is_wrong_gets_one_clear_error(
    bench: Bench, desk: BrokerSession, mosquitto: Mosquitto, name: str
) -> None:
    eventually(lambda: everything_published(bench))
    good = signed(bench, rollback(), "ann", "cid")
    wrong = {
        "truncated": ("rollback", good[:-30], ""),
        "unsigned": ("rollback", json.dumps({"type": "holdfast.command/1"}).encode(), ""),
        "a stranger's": ("rollback", signed(bench, rollback(), "eve"), "signatures"),
        "another verb": ("approve", good, "act.verb"),
        "a typo in the segment": ("rollback", signed(bench, rollback("region=eu-wset"), "ann", "cid"), "segment"),
    }
    verb, message, field = wrong[name]
    before = everything(bench.database)
    with pytest.raises(Refused) as refused:
        ask(mosquitto, verb, message)
    assert refused.value.next_step
    assert not field or refused.value.field == field
    assert everything(bench.database) == before


def rollback(segment: str = f"region={REGION}") -> Rollback:
    return Rollback(pipeline=PIPELINE, version="1.1.0", reason="worse at night", segment=selector.parse(segment))


def signed(bench: Bench, act: Act, *signers: str) -> bytes:
    now = bench.now().at
    command = Command(fleet=FLEET, id=secrets.token_hex(16), issued_at=now, not_after=now + 300_000_000, act=act)
    return signing.sign(strict_json.encode(command), TYPE, [KEYS[name] for name in signers])
