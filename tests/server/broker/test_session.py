"""The server's session through a real broker: documents out and back, reports in, commands answered; and all of it again
after the broker died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from holdfast_cli import broker as asking
from holdfast_cli.failures import Refused
from holdfast_server.broker import publisher as publisher_module
from holdfast_server.broker import session as session_module
from holdfast_server.broker.session import BrokerSession
from holdfast_server.store import outbox
from holdfast_shared import selector, signing, strict_json, topics
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.errors import Malformed
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.command import TYPE, Act, Approve, Command, Rollback
from support.mosquitto import Mosquitto, running_mosquitto
from support.reporting import FLEET, PIPELINE, REGION, Ground, Reporter, eventually, everything, sqlite_ground
from support.rollout_bench import KEYS, Bench

pytestmark = pytest.mark.slow
WAIT_S = 20.0


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with running_mosquitto() as running:
        yield running


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with sqlite_ground(tmp_path) as made:
        yield made


@pytest.fixture
def session(ground: Ground, mosquitto: Mosquitto) -> Iterator[BrokerSession]:
    with running(ground, mosquitto) as made:
        yield made


@contextlib.contextmanager
def running(context: Any, mosquitto: Mosquitto) -> Iterator[BrokerSession]:
    made = BrokerSession(context, mosquitto.url)
    made.start()
    try:
        eventually(lambda: made.connected)
        yield made
    finally:
        made.stop()


class Peer:
    """Anybody at the broker: hears what it subscribed to, and publishes."""

    def __init__(self, mosquitto: Mosquitto, *wanted: str) -> None:
        self.heard: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        heard = self.heard  # no way back from the client to us: it closes its sockets as it goes
        self.client.on_message = lambda _, __, message: heard.put(message)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in (*wanted, "none")])
        self.client.connect("127.0.0.1", mosquitto.port)
        self.client.loop_start()
        assert ready.wait(WAIT_S)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1, **properties: Any) -> None:
        given: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            setattr(given, name, value)
        self.client.publish(topic, payload, qos=qos, retain=retain, properties=given).wait_for_publish(WAIT_S)

    def next(self) -> paho.MQTTMessage:
        return self.heard.get(timeout=WAIT_S)


def unpublished(ground: Ground) -> list[str]:
    with ground.database.read() as connection:
        return [one.pipeline for one in outbox.stored_documents(connection, unpublished=True)]


def retained(mosquitto: Mosquitto, count: int) -> dict[str, bytes]:
    """What a fresh subscriber gets at once."""
    with Peer(mosquitto, f"holdfast/{FLEET}/region/+/assignment/+") as fresh:
        found = [fresh.next() for _ in range(count)]
    assert all(message.retain for message in found)
    return {message.topic: bytes(message.payload) for message in found}


def stored(ground: Ground) -> dict[str, bytes]:
    with ground.database.read() as connection:
        return {
            topics.region_assignment(FLEET, one.scope.partition("/")[2], one.pipeline): one.envelope
            for one in outbox.stored_documents(connection)
        }


# ---------------------------------------------------------------- documents
def test_a_document_is_published_once_the_broker_gave_back_its_bytes(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto
) -> None:
    ground.issue()
    eventually(lambda: not unpublished(ground))
    assert retained(mosquitto, 1) == stored(ground)


def test_a_new_document_goes_out_at_once(ground: Ground, session: BrokerSession, mosquitto: Mosquitto) -> None:
    first = ground.issue(version="1.0.0")
    with Peer(mosquitto, f"holdfast/{FLEET}/region/+/assignment/+") as device:
        assert device.next().payload == first.envelope
        second = ground.issue(version="1.1.0")
        assert device.next().payload == second.envelope
    eventually(lambda: not unpublished(ground))


def test_a_broker_that_was_killed_and_is_empty_holds_everything_again(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto
) -> None:
    for region, pipeline in (("eu-west", "digits"), ("eu-west", "words"), ("us-east", "digits")):
        ground.issue(pipeline, region=region)
    eventually(lambda: not unpublished(ground))
    mosquitto.stop()
    eventually(lambda: not session.connected)
    ground.issue("sounds", region="us-east")
    mosquitto.start()
    eventually(lambda: session.connected)
    eventually(lambda: not unpublished(ground))
    assert retained(mosquitto, 4) == stored(ground)


def test_what_a_broker_that_died_held_is_not_believed_to_be_published(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto
) -> None:
    ground.issue()
    eventually(lambda: not unpublished(ground))
    mosquitto.stop()
    mosquitto.start()
    assert retained_soon(mosquitto) == next(iter(stored(ground).values()))


def retained_soon(mosquitto: Mosquitto) -> bytes:
    with Peer(mosquitto, f"holdfast/{FLEET}/region/+/assignment/+") as device:
        return bytes(device.next().payload)


def test_a_document_that_does_not_come_back_is_not_called_published(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker grants a subscription that it then withholds, and acknowledges what it throws away: an operator is told."""
    monkeypatch.setattr(publisher_module, "AGAIN_S", 0.05)
    rules = tmp_path / "acl"
    rules.write_text(f"topic write holdfast/{FLEET}/region/#\ntopic read holdfast/{FLEET}/region/us-east/#\n")
    mine = "user root\n"  # started by root it becomes another user, who may not read here; by others this says nothing
    with running_mosquitto(more=f"{mine}acl_file {rules}\n") as mosquitto, running(ground, mosquitto):
        ground.issue("digits", region="us-east")
        ground.issue("words", region="eu-west")
        eventually(lambda: unpublished(ground) == ["words"])
        eventually(lambda: any("does not give back" in line for line in caplog.messages))
        assert unpublished(ground) == ["words"]


@pytest.mark.parametrize("payload", [b"", b"nonsense"])
def test_a_document_that_somebody_published_over_is_published_again(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "AGAIN_S", 0.5)
    document = ground.issue()
    eventually(lambda: not unpublished(ground))
    topic = topics.region_assignment(FLEET, REGION, PIPELINE)
    with Peer(mosquitto, topic) as peer:
        assert peer.next().payload == document.envelope
        peer.publish(topic, payload, retain=True)
        assert peer.next().payload == payload
        assert peer.next().payload == document.envelope
    assert retained(mosquitto, 1) == stored(ground)


def test_a_forger_who_goes_on_is_answered_in_measure(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "AGAIN_S", 1.0)
    document = ground.issue()
    eventually(lambda: not unpublished(ground))
    topic = topics.region_assignment(FLEET, REGION, PIPELINE)
    with Peer(mosquitto, topic) as peer:
        for number in range(200):
            peer.publish(topic, b"forged %d" % number, retain=True)
        heard = [peer.next().payload]
        while heard[-1] != document.envelope or b"forged 199" not in heard:
            heard.append(peer.next().payload)
    assert heard.count(document.envelope) <= 5
    assert retained(mosquitto, 1) == stored(ground)


# ---------------------------------------------------------------- reports
def test_reports_arrive_and_forged_ones_do_not(ground: Ground, session: BrokerSession, mosquitto: Mosquitto) -> None:
    device, other = Reporter("dev-1").enrol(ground.database), Reporter("dev-2").enrol(ground.database)
    with Peer(mosquitto) as peer:
        peer.publish(topics.presence(FLEET, device.device), b"online", retain=True)
        peer.publish(topics.health(FLEET, device.device), device.signed(windows=(device.window(),)))
        peer.publish(topics.event(FLEET, device.device), device.signed(kind="event"))
        eventually(lambda: session.intake.tally.counts().get("reports") == 2)
        eventually(lambda: [row[-1] for row in everything(ground.database)["device_state"]] == ["online"])
        before = everything(ground.database)
        peer.publish(topics.health(FLEET, other.device), device.signed())
        peer.publish(topics.health(FLEET, device.device), device.sign(device.report(), key=PrivateKey.generate()))
        peer.publish(topics.health(FLEET, "stranger"), Reporter("stranger").signed())
        peer.publish(topics.health(FLEET, device.device), b"\x00")
        eventually(lambda: session.intake.tally.counts().get("dropped untrusted") == 2)
        eventually(lambda: session.intake.tally.counts().get("dropped malformed") == 1)
        eventually(lambda: session.intake.tally.counts().get("dropped unknown-device") == 1)
    assert everything(ground.database) == before


def test_an_oversized_packet_costs_the_session_nothing(
    ground: Ground, session: BrokerSession, mosquitto: Mosquitto
) -> None:
    device = Reporter().enrol(ground.database)
    with Peer(mosquitto) as peer:
        peer.publish(topics.health(FLEET, device.device), b" " * (session_module.PACKET_BYTES_MAX + 1))
        peer.publish(topics.health(FLEET, device.device), device.signed())
        eventually(lambda: session.intake.tally.counts().get("reports") == 1)
    assert session.connected


def test_what_came_while_the_server_was_away_is_taken_in_later(ground: Ground, mosquitto: Mosquitto) -> None:
    device = Reporter().enrol(ground.database)
    with running(ground, mosquitto):
        pass
    with Peer(mosquitto) as peer:
        peer.publish(topics.health(FLEET, device.device), device.signed())
    with running(ground, mosquitto) as session:
        eventually(lambda: session.intake.tally.counts().get("reports") == 1)


_KILLED = """
import os, sys
from pathlib import Path
from holdfast_server.broker.session import BrokerSession
from holdfast_server.ingest.intake import Intake
from holdfast_server.ingest import recording
from holdfast_server.store.database import sqlite_url
from support.reporting import Ground

def die(*_):
    os.kill(os.getpid(), 9)

if sys.argv[3] == "before the commit":
    recording.record = die
else:
    real = Intake._record
    Intake._record = lambda self, believed: die(real(self, believed))
BrokerSession(Ground(sqlite_url(Path(sys.argv[1]))), sys.argv[2]).start()
sys.stdin.read()
"""


def _path() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
def test_a_server_killed_before_it_acknowledged_is_told_again(tmp_path: Path, mosquitto: Mosquitto, when: str) -> None:
    """SIGKILL before the commit: the report comes again and counts. After it: it comes again and does not count twice."""
    with sqlite_ground(tmp_path) as ground:
        device = Reporter().enrol(ground.database)
        with running(ground, mosquitto):
            pass  # from now on the broker keeps for the server what comes
        with Peer(mosquitto) as peer:
            peer.publish(topics.health(FLEET, device.device), device.signed())
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(tmp_path / "server.db"), mosquitto.url, when],
            stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _path()},
        )  # fmt: skip
        try:
            assert child.wait(timeout=WAIT_S) == -9
        finally:
            child.kill()
            child.communicate(timeout=WAIT_S)
        before, what = (0, "reports") if when == "before the commit" else (1, "doubled")
        assert len(everything(ground.database)["reports_seen"]) == before
        with running(ground, mosquitto) as session:
            eventually(lambda: session.intake.tally.counts().get(what) == 1)
        assert len(everything(ground.database)["reports_seen"]) == 1


# ---------------------------------------------------------------- commands
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
    with running(bench, mosquitto) as made:
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


def test_a_broker_address_with_a_typo_is_refused_at_once(ground: Ground) -> None:
    with pytest.raises(Malformed) as raised:
        BrokerSession(ground, "http://127.0.0.1:1883")
    assert raised.value.field == "--mqtt"
