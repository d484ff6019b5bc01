"""The broker session against a real mosquitto: documents in, reports out, and what happens while the broker is away."""

from __future__ import annotations

import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from holdfast_agent.edge.broker import (
    PACKET_BYTES_MAX,
    UNANSWERED_MAX,
    BrokerEvent,
    BrokerSession,
    Connected,
    Gone,
    Received,
    Sent,
    Unheard,
)
from holdfast_agent.edge.network import Network
from holdfast_shared import topics
from support.fault_proxy import running_fault_proxy
from support.mosquitto import Mosquitto, running_mosquitto

pytestmark = pytest.mark.slow
WITHIN_S = 20.0
FLEET, REGION = "acme", "eu-west"
REGION_TOPIC = topics.region_assignment(FLEET, REGION, "digits")
Make = Callable[..., tuple[BrokerSession, "Events"]]


class Events:
    """What a session said, in order."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()

    def until(self, wanted: Callable[[BrokerEvent], bool]) -> BrokerEvent:
        """The first event that is wanted; those before it are passed over."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            event = self.queue.get(timeout=max(0.01, deadline - time.monotonic()))
            if wanted(event):
                return event

    def until_a(self, kind: type[BrokerEvent]) -> Any:
        return self.until(lambda event: isinstance(event, kind))


class Observer:
    """A plain client beside the session: publishes, and keeps what it sees of the fleet's topics."""

    def __init__(self, broker: Mosquitto) -> None:
        self.seen: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.everything: list[bytes] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _, __, message: self.seen.put((message.topic, bytes(message.payload)))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe(f"holdfast/{FLEET}/#", qos=1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(WITHIN_S)

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(WITHIN_S)

    def until(self, topic: str, payload: bytes) -> None:
        deadline = time.monotonic() + WITHIN_S
        while True:
            seen = self.seen.get(timeout=max(0.01, deadline - time.monotonic()))
            self.everything.append(seen[1])
            if seen == (topic, payload):
                return

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with running_mosquitto() as running:
        yield running


@pytest.fixture
def observer(broker: Mosquitto) -> Iterator[Observer]:
    made = Observer(broker)
    yield made
    made.close()


@pytest.fixture
def make(broker: Mosquitto) -> Iterator[Make]:
    sessions: list[BrokerSession] = []

    def started(device: str = "camera-7", **changed: Any) -> tuple[BrokerSession, Events]:
        events = Events()
        more: dict[str, Any] = {"url": broker.url, "emit": events.queue.put, "keepalive_s": 30} | changed
        session = BrokerSession(fleet=FLEET, device=device, region=REGION, **more)
        session.start()
        sessions.append(session)
        return session, events

    yield started
    for session in sessions:
        session.stop()


def test_retained_documents_of_its_region_and_of_itself_arrive(make: Make, observer: Observer) -> None:
    observer.publish(REGION_TOPIC, b"for the region")
    observer.publish(topics.device_assignment(FLEET, "camera-7", "digits"), b"for the device")
    observer.publish(topics.device_assignment(FLEET, "camera-8", "digits"), b"for another")
    observer.publish(topics.region_assignment(FLEET, "us-east", "digits"), b"for elsewhere")
    _, events = make()
    got = {events.until_a(Received), events.until_a(Received)}
    assert {event.payload for event in got} == {b"for the region", b"for the device"}
    observer.publish(REGION_TOPIC, b"newer")
    assert events.until_a(Received) == Received(REGION_TOPIC, b"newer")


def test_an_empty_document_means_nothing(make: Make, observer: Observer) -> None:
    _, events = make()
    events.until_a(Connected)
    observer.publish(REGION_TOPIC, b"")
    observer.publish(REGION_TOPIC, b"after")
    assert events.until_a(Received).payload == b"after"


def test_a_document_of_the_largest_size_arrives_and_a_larger_one_ends_nothing(make: Make, observer: Observer) -> None:
    _, events = make()
    events.until_a(Connected)
    observer.publish(REGION_TOPIC, b"x" * (PACKET_BYTES_MAX + 1))
    largest = b"y" * (48 * 1024)
    observer.publish(REGION_TOPIC, largest)
    assert events.until(lambda event: not isinstance(event, Connected)) == Received(REGION_TOPIC, largest)


def test_a_message_counts_as_sent_at_its_acknowledgement(make: Make, observer: Observer) -> None:
    session, events = make()
    events.until_a(Connected)
    topic = topics.health(FLEET, "camera-7")
    assert session.publish(topic, b"report", 41)
    assert events.until_a(Sent) == Sent(41)
    observer.until(topic, b"report")


def test_nothing_is_taken_while_it_is_not_connected(make: Make) -> None:
    session, events = make(url="mqtt://127.0.0.1:1")
    events.until_a(Gone)
    assert not session.publish("a/b", b"report", 1)


def test_no_more_than_the_limit_is_under_way_and_all_of_it_is_sent(make: Make, observer: Observer) -> None:
    session, events = make()
    events.until_a(Connected)
    taken = [token for token in range(2000) if session.publish(topics.event(FLEET, "camera-7"), b"x" * 4000, token)]
    assert taken, "nothing was taken"
    assert [events.until_a(Sent).token for _ in taken] == taken
    assert session.publish(topics.event(FLEET, "camera-7"), b"x", 5000)
    assert session._unanswered <= UNANSWERED_MAX


def test_what_nobody_listens_to_does_not_count_as_sent(make: Make, broker: Mosquitto) -> None:
    """A broker that was restarted empty acknowledges reports that no server will ever see."""
    session, events = make()
    events.until_a(Connected)
    topic = topics.health(FLEET, "camera-7")
    assert session.publish(topic, b"to nobody", 1)
    assert events.until(lambda event: isinstance(event, Sent | Unheard)) == Unheard(1)
    listening = Observer(broker)
    assert session.publish(topic, b"to nobody", 1)
    assert events.until(lambda event: isinstance(event, Sent | Unheard)) == Sent(1)
    listening.close()


def test_the_broker_killed_and_started_again(make: Make, broker: Mosquitto) -> None:
    """Said as `Gone`, connected again by itself; what was not acknowledged is not sent behind its owner's back."""
    session, events = make()
    events.until_a(Connected)
    broker.stop()
    events.until_a(Gone)
    assert not session.publish(topics.event(FLEET, "camera-7"), b"lost", 1)
    broker.start()
    watching = Observer(broker)
    events.until_a(Connected)
    assert session.publish(topics.event(FLEET, "camera-7"), b"again", 1)
    assert events.until_a(Sent) == Sent(1)
    watching.until(topics.event(FLEET, "camera-7"), b"again")
    watching.close()


def test_what_was_not_acknowledged_is_not_sent_and_does_not_count_as_sent(make: Make, broker: Mosquitto) -> None:
    """The broker hangs with a report on its way, and is killed: only its owner may send it again."""
    session, events = make()
    events.until_a(Connected)
    assert broker._process is not None
    broker._process.send_signal(signal.SIGSTOP)
    assert session.publish(topics.event(FLEET, "camera-7"), b"under way", 1)
    broker.stop()
    assert isinstance(events.until(lambda event: isinstance(event, Gone | Sent)), Gone)
    broker.start()
    watching = Observer(broker)
    events.until_a(Connected)
    assert session.publish(topics.event(FLEET, "camera-7"), b"another", 2)
    assert events.until_a(Sent) == Sent(2)
    watching.until(topics.event(FLEET, "camera-7"), b"another")
    watching.close()
    assert b"under way" not in watching.everything


def test_it_starts_before_its_broker_does(make: Make, broker: Mosquitto) -> None:
    broker.stop()
    _, events = make()
    events.until_a(Gone)
    broker.start()
    events.until_a(Connected)


def test_presence_is_online_while_it_stands_and_offline_after_a_stop(make: Make, observer: Observer) -> None:
    session, _ = make()
    observer.until(topics.presence(FLEET, "camera-7"), b"online")
    session.stop()
    observer.until(topics.presence(FLEET, "camera-7"), b"offline")


def test_the_last_will_says_offline_for_a_device_that_vanished(make: Make, observer: Observer) -> None:
    session, _ = make()
    observer.until(topics.presence(FLEET, "camera-7"), b"online")
    client = session._client
    assert client is not None
    used = client.socket()
    assert isinstance(used, socket.socket)
    used.shutdown(socket.SHUT_RDWR)
    observer.until(topics.presence(FLEET, "camera-7"), b"offline")
    observer.until(topics.presence(FLEET, "camera-7"), b"online")  # and it comes back


def test_two_of_one_name_take_turns_ever_more_slowly(make: Make) -> None:
    """A takeover is said; neither side comes back at full speed, so a cloned device does not storm the broker."""
    _, first = make()
    first.until_a(Connected)
    other, second = make()
    first.until_a(Gone)
    first.until_a(Connected)
    second.until_a(Gone)
    assert other._failures > 0


def test_a_listener_that_fails_ends_nothing(make: Make, observer: Observer) -> None:
    got: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def fragile(event: BrokerEvent) -> None:
        if isinstance(event, Received):
            got.put(event.payload)
        raise RuntimeError("the listener's own fault")

    make(emit=fragile)
    observer.publish(REGION_TOPIC, b"one")
    assert got.get(timeout=WITHIN_S) == b"one"
    observer.publish(REGION_TOPIC, b"two")
    assert got.get(timeout=WITHIN_S) == b"two"


def test_a_broker_that_accepts_and_says_nothing_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_agent.edge.broker.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session, events = make(url=f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        assert "did not answer" in events.until_a(Gone).reason
        session.stop()


def test_three_hundred_sessions_share_one_thread(make: Make, observer: Observer, broker: Mosquitto) -> None:
    """All connect, all hear one document, all report, all come back after the broker did."""
    network = Network("shared")
    network.start()
    before = threading.active_count()
    made = [make(f"light-{number}", network=network) for number in range(300)]
    for _, events in made:
        events.until_a(Connected)
    assert threading.active_count() == before
    observer.publish(REGION_TOPIC, b"one for all")
    for session, events in made:
        assert events.until_a(Received).payload == b"one for all"
        assert session.publish(topics.health(FLEET, session._device), b"x" * 2000, 9)
    for _, events in made:
        assert events.until_a(Sent) == Sent(9)
    broker.stop()
    broker.start()
    for _, events in made:
        events.until_a(Connected)
    for session, _ in made:
        session.stop()
    network.stop()


def test_a_connection_that_goes_dead_is_noticed_by_keepalive_and_made_anew(
    make: Make, observer: Observer, broker: Mosquitto
) -> None:
    """Half-open: nothing is closed and nothing comes any more, as behind a router that forgot the connection."""
    with running_fault_proxy(f"mqtt://127.0.0.1:{broker.port}") as proxy:
        _, events = make(url=proxy.url, keepalive_s=2)
        events.until_a(Connected)
        proxy.set(stall_after=0)
        assert events.until_a(Gone).reason
        proxy.set()
        events.until_a(Connected)
        observer.publish(REGION_TOPIC, b"after it")
        events.until(lambda event: isinstance(event, Received) and event.payload == b"after it")


def test_a_document_comes_whole_through_a_slow_network(make: Make, observer: Observer, broker: Mosquitto) -> None:
    """And a connection that is reset in the middle of one is made anew, and brings it then."""
    payload = b"d" * 40_000
    with running_fault_proxy(f"mqtt://127.0.0.1:{broker.port}") as proxy:
        proxy.set(bytes_per_s=40_000, latency_s=0.02)
        _, events = make(url=proxy.url)
        events.until_a(Connected)
        proxy.set(bytes_per_s=40_000, reset_after=20_000)
        observer.publish(REGION_TOPIC, payload)
        events.until_a(Gone)
        assert events.until_a(Received).payload == payload
