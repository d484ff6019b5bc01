"""The server's session through a real broker: documents out and back, reports in; and all of it again after the broker died."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_server.broker import publisher as publisher_module
from holdfast_server.broker import session as session_module
from holdfast_server.broker.session import BrokerSession
from holdfast_server.store import outbox
from holdfast_shared import topics
from holdfast_shared.errors import Malformed
from holdfast_shared.signing import PrivateKey
from support.broker_peer import Peer, running_session
from support.mosquitto import Mosquitto, running_mosquitto
from support.reporting import FLEET, PIPELINE, REGION, Ground, Reporter, eventually, everything, sqlite_ground

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
    with running_session(ground, mosquitto) as made:
        yield made


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
    with running_mosquitto(more=f"{mine}acl_file {rules}\n") as mosquitto, running_session(ground, mosquitto):
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
    with running_session(ground, mosquitto):
        pass
    with Peer(mosquitto) as peer:
        peer.publish(topics.health(FLEET, device.device), device.signed())
    with running_session(ground, mosquitto) as session:
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
        with running_session(ground, mosquitto):
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
        with running_session(ground, mosquitto) as session:
            eventually(lambda: session.intake.tally.counts().get(what) == 1)
        assert len(everything(ground.database)["reports_seen"]) == 1


def test_a_broker_address_with_a_typo_is_refused_at_once(ground: Ground) -> None:
    with pytest.raises(Malformed) as raised:
        BrokerSession(ground, "http://127.0.0.1:1883")
    assert raised.value.field == "--mqtt"
