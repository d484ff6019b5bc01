"""Broker and server behind TLS: what the agent says and hears through it, and whose certificates it believes."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge import polling, request
from holdfast_agent.edge.broker import BrokerEvent, BrokerSession, Connected, Gone, Received, Sent
from holdfast_agent.edge.polling import AssignmentPoll, Polled
from holdfast_shared import topics
from support.hostile_server import honest, running_hostile_server
from support.mosquitto import running_mosquitto
from support.tls_front import HOST, Authority, running_tls_front

pytestmark = pytest.mark.slow
WITHIN_S = 20.0
FLEET, REGION, DEVICE = "acme", "eu-west", "camera-7"
# Several TLS records, of which the last are decrypted before anybody polls the socket again.
LARGE = bytes(48 * 1024)
Unbelieved = Callable[[Authority], Path]


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.path))
    return made


@pytest.fixture
def broker() -> Iterator[int]:
    with running_mosquitto() as running:
        yield running.port


def expired(authority: Authority) -> Path:
    return authority.certificate(days_from=-20, days_to=-1)


def of_another(authority: Authority) -> Path:
    return authority.certificate("broker.example")


def of_nobody(authority: Authority) -> Path:
    folder = authority.path.parent / "other"
    folder.mkdir()
    return Authority(folder).certificate()


def session(port: int, heard: queue.SimpleQueue[BrokerEvent]) -> BrokerSession:
    url = f"mqtts://{HOST}:{port}"
    made = BrokerSession(url=url, fleet=FLEET, device=DEVICE, region=REGION, emit=heard.put, keepalive_s=30)
    made.start()
    return made


def test_a_session_says_and_hears_through_tls(authority: Authority, broker: int) -> None:
    heard: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()
    with running_tls_front(authority.certificate(), broker) as secured:
        made = session(secured, heard)
        try:
            assert isinstance(heard.get(timeout=WITHIN_S), Connected)
            topic = topics.device_assignment(FLEET, DEVICE, "digits")
            assert made.publish(topic, LARGE, 7)
            came = [heard.get(timeout=WITHIN_S) for _ in range(2)]
            assert Sent(7) in came
            assert any(isinstance(one, Received) and one.payload == LARGE for one in came)
        finally:
            made.stop()


# paho leaves the socket of a handshake that failed to the collector, which closes it at once, and says so.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("shown", [expired, of_another, of_nobody])
def test_no_session_is_made_with_who_is_not_believed(authority: Authority, broker: int, shown: Unbelieved) -> None:
    heard: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()
    with running_tls_front(shown(authority), broker) as secured:
        made = session(secured, heard)
        try:
            for _ in range(2):
                gone = heard.get(timeout=WITHIN_S)
                assert isinstance(gone, Gone), gone
                assert "certificate" in gone.reason.lower(), "it says why"
        finally:
            made.stop()


def test_the_server_is_asked_through_tls(authority: Authority) -> None:
    got: queue.SimpleQueue[Polled] = queue.SimpleQueue()
    with running_hostile_server() as server:
        place = f"/api/v1/assignments/region/{REGION}"
        listing = json.dumps({"pipelines": {"digits": "sha256:" + "a" * 64}}).encode()
        server.on(place, honest(listing, '"1"'))
        server.on(f"{place}/digits", honest(b"for the region"))
        port = int(server.url.rpartition(":")[2])
        with running_tls_front(authority.certificate(), port) as secured:
            poll = AssignmentPoll(
                url=f"https://{HOST}:{secured}", region=REGION, device=DEVICE, poll_s=polling.FIRST_S, emit=got.put
            )
            poll.start()
            try:
                assert got.get(timeout=WITHIN_S).envelope == b"for the region"
            finally:
                poll.stop()


@pytest.mark.parametrize("shown", [expired, of_another, of_nobody])
def test_nothing_is_asked_of_who_is_not_believed(authority: Authority, shown: Unbelieved) -> None:
    with running_hostile_server() as server:
        server.on("/", honest(b"secret"))
        port = int(server.url.rpartition(":")[2])
        with (
            running_tls_front(shown(authority), port) as secured,
            pytest.raises(request.Unreachable, match="certificate"),
            request.get(f"https://{HOST}:{secured}", "/", deadline_s=WITHIN_S),
        ):
            pass
        assert server.requests == []
