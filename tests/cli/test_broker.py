"""A rollback sent through a real broker: the same bytes, one answer, one deadline. The server's side is played here."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from holdfast_cli import broker
from holdfast_cli.failures import Refused, Unreachable
from holdfast_shared.broker_address import BrokerAddress
from support.mosquitto import Mosquitto, running_mosquitto

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mosquitto() -> Iterator[Mosquitto]:
    with running_mosquitto() as running:
        yield running


class Answering:
    """Subscribes to the commands of a fleet, and answers each with what it was told to."""

    def __init__(self, port: int, *answers: bytes, correlated: bool = True) -> None:
        self.heard: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)

        def on_message(client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
            self.heard.put(message)
            asked: Any = message.properties
            for answer in answers:
                properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
                properties.CorrelationData = asked.CorrelationData if correlated else b"another"
                client.publish(asked.ResponseTopic, answer, qos=1, properties=properties)

        self._client.on_message = on_message
        self._client.on_connect = lambda client, *_: client.subscribe("holdfast/demo/command/+", qos=1)
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        ready.get(timeout=10)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_the_answer_is_the_servers_result(mosquitto: Mosquitto) -> None:
    with Answering(mosquitto.port, json.dumps({"ok": True, "id": "rb-1"}).encode()) as server:
        done = broker.ask(BrokerAddress.parse(mosquitto.url), fleet="demo", verb="rollback", message=b"signed bytes")
        heard = server.heard.get(timeout=10)
    assert done == {"ok": True, "id": "rb-1"}
    assert (heard.topic, heard.payload, heard.qos) == ("holdfast/demo/command/rollback", b"signed bytes", 1)
    assert not heard.retain


def test_a_refusal_keeps_its_field_and_next_step(mosquitto: Mosquitto) -> None:
    error = {"code": "untrusted", "field": "signatures", "message": "nobody known signed it", "next": "sign it"}
    with Answering(mosquitto.port, json.dumps({"error": error}).encode()), pytest.raises(Refused) as raised:
        broker.ask(BrokerAddress.parse(mosquitto.url), fleet="demo", verb="rollback", message=b"x")
    assert (raised.value.code, raised.value.field, raised.value.next_step) == ("untrusted", "signatures", "sign it")


@pytest.mark.parametrize("answer", [b"", b"no json", b"[]", b'{"error": "?"}'])
def test_an_answer_that_is_none_of_ours_is_one_error(mosquitto: Mosquitto, answer: bytes) -> None:
    with Answering(mosquitto.port, answer), pytest.raises(Unreachable):
        broker.ask(BrokerAddress.parse(mosquitto.url), fleet="demo", verb="rollback", message=b"x")


def test_silence_ends_at_the_deadline_and_says_to_look_before_repeating(mosquitto: Mosquitto) -> None:
    with pytest.raises(Unreachable) as raised:
        broker.ask(BrokerAddress.parse(mosquitto.url), fleet="demo", verb="rollback", message=b"x", answer_s=0.3)
    assert raised.value.field == "--mqtt"
    assert "holdfast rollbacks" in raised.value.next_step


def test_an_answer_to_somebody_else_is_passed_over(mosquitto: Mosquitto) -> None:
    with Answering(mosquitto.port, b'{"ok": true}', correlated=False), pytest.raises(Unreachable):
        broker.ask(BrokerAddress.parse(mosquitto.url), fleet="demo", verb="rollback", message=b"x", answer_s=0.5)
