"""A server's broker session that runs, and anybody else at the same broker."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from holdfast_server.broker.session import BrokerSession
from support.mosquitto import Mosquitto
from support.reporting import eventually

WAIT_S = 20.0


@contextlib.contextmanager
def running_session(context: Any, mosquitto: Mosquitto) -> Iterator[BrokerSession]:
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
        given: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        for name, value in properties.items():
            setattr(given, name, value)
        self.client.publish(topic, payload, qos=qos, retain=retain, properties=given).wait_for_publish(WAIT_S)

    def next(self) -> paho.MQTTMessage:
        return self.heard.get(timeout=WAIT_S)
