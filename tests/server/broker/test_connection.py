"""One connection: acknowledgements in order, and nothing that a listener does ends the thread that hears for us."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import pytest
from paho.mqtt import publish

from holdfast_server.broker import session as session_module
from holdfast_server.broker.connection import Connection, InOrder, Message, Subscription
from holdfast_server.broker.session import BACKOFF_FIRST_S, BACKOFF_MAX_S, BrokerSession
from holdfast_shared.broker_address import BrokerAddress
from support.mosquitto import Mosquitto, running_mosquitto
from support.reporting import eventually, sqlite_ground


def test_acknowledgements_leave_in_the_order_in_which_messages_came() -> None:
    sent: list[int] = []
    in_order = InOrder(sent.append)
    first, second, third = in_order.expect(11), in_order.expect(12), in_order.expect(13)
    second()
    assert sent == []
    first()
    assert sent == [11, 12]
    first()
    third()
    assert sent == [11, 12, 13]


def test_the_backoff_is_jittered_and_bounded() -> None:
    drawn = [session_module._jittered(failures) for failures in range(40) for _ in range(20)]
    assert min(drawn) >= BACKOFF_FIRST_S / 5
    assert max(drawn) <= BACKOFF_MAX_S
    assert len(set(drawn)) > len(drawn) // 2


class Stumbling:
    """A listener that fails at every message it is told to fail at, and acknowledges the others."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def ready(self, _: Connection) -> None:
        self.up.set()

    def received(self, _: Connection, message: Message) -> None:
        self.heard.put(message.payload)
        if message.payload == b"poison":
            raise RuntimeError("as a bug of ours would")
        assert message.acknowledge is not None
        message.acknowledge()


def connect(mosquitto: Mosquitto, listener: Stumbling) -> Connection:
    connection = Connection(
        BrokerAddress.parse(mosquitto.url), client_id="c", subscriptions=[Subscription("t", qos=1, retained=False)],
        listener=listener, unacknowledged_max=1, packet_bytes_max=1000,
    )  # fmt: skip
    connection.open()
    assert listener.up.wait(10)
    return connection


@pytest.mark.slow
def test_a_listener_that_fails_loses_its_message_and_not_the_connection() -> None:
    """With one unacknowledged message allowed, the next comes only after the poisonous one was acknowledged."""
    with running_mosquitto() as mosquitto:
        listener = Stumbling()
        connection = connect(mosquitto, listener)
        try:
            for payload in (b"poison", b"bread"):
                publish.single("t", payload, qos=1, hostname="127.0.0.1", port=mosquitto.port)
            assert [listener.heard.get(timeout=10), listener.heard.get(timeout=10)] == [b"poison", b"bread"]
            assert connection.wait(0) is None
        finally:
            connection.close()


@pytest.mark.slow
def test_the_server_starts_before_its_broker_and_stops_without_it(tmp_path: Path) -> None:
    with sqlite_ground(tmp_path) as ground, running_mosquitto() as mosquitto:
        mosquitto.stop()
        session = BrokerSession(ground, mosquitto.url)
        session.start()
        assert not session.connected
        mosquitto.start()
        eventually(lambda: session.connected)
        mosquitto.stop()
        eventually(lambda: not session.connected)
        began = time.monotonic()
        session.stop()
        assert time.monotonic() - began < session_module.STOP_S
        assert {"broker", "ingest", "outbox", "commands", "retention"}.isdisjoint(
            thread.name for thread in threading.enumerate()
        )
