"""The broker's configuration, by a real mosquitto: it starts, on loopback alone, and throws nothing of an hour away."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from demonstration.processes import free_port
from holdfast_shared.wire import assignment, command, report
from support.services import need_program

pytestmark = pytest.mark.slow
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "mosquitto.conf"
DEADLINE_S = 30.0
# mosquitto keeps 1000 for a client that is away unless it is told otherwise.
AWAY = 1500


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A broker with the file as it is, but for the port."""
    program = need_program("mosquitto", "mosquitto")
    free = free_port()
    text = CONFIGURATION.read_text()
    assert text.count("listener 1883 127.0.0.1") == 1
    (tmp_path / "mosquitto.conf").write_text(text.replace("listener 1883 ", f"listener {free} "))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", tmp_path / "mosquitto.conf"], stdout=log, stderr=log)
    try:
        due = time.monotonic() + DEADLINE_S
        while time.monotonic() < due and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", free), timeout=1).close()
            except OSError:
                time.sleep(0.02)
                continue
            break
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield free
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


class Client:
    """`heard` counts what came."""

    def __init__(self, port: int, name: str, *, kept_s: int = 0) -> None:
        self.heard = 0
        self.gone = threading.Event()
        self._subscribed, self._all = threading.Event(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self.gone.set()
        wishes: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        wishes.SessionExpiryInterval = kept_s
        self._client.connect("127.0.0.1", port, clean_start=False, properties=wishes)
        self._client.loop_start()

    def subscribe(self) -> None:
        self._client.subscribe("holdfast/f/#", qos=1)
        assert self._subscribed.wait(DEADLINE_S)

    def publish(self, payload: bytes) -> paho.MQTTMessageInfo:
        return self._client.publish("holdfast/f/device/d/event", payload, qos=1)

    def until_all(self) -> int:
        self._all.wait(DEADLINE_S)
        return self.heard

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, *_: object) -> None:
        self.heard += 1
        if self.heard >= AWAY:
            self._all.set()


def test_what_devices_say_while_the_server_is_away_waits_for_it(port: int) -> None:
    server = Client(port, "server", kept_s=3600)
    server.subscribe()
    server.close()
    device = Client(port, "device")
    said = [device.publish(b"x" * 1024) for _ in range(AWAY)]
    for one in said:
        one.wait_for_publish(DEADLINE_S)
    device.close()
    server = Client(port, "server", kept_s=3600)
    assert server.until_all() == AWAY
    server.close()


def test_the_largest_document_of_ours_passes_and_nothing_much_larger(port: int) -> None:
    largest = max(report.ENVELOPE_BYTES_MAX, assignment.ENVELOPE_BYTES_MAX, command.ENVELOPE_BYTES_MAX)
    device = Client(port, "device")
    device.publish(b"x" * largest).wait_for_publish(DEADLINE_S)
    device.publish(b"x" * 2 * largest)
    assert device.gone.wait(DEADLINE_S), "the broker ends who sends more"
    device.close()


def test_other_machines_cannot_reach_it() -> None:
    listeners = [
        line for line in CONFIGURATION.read_text().splitlines() if line.startswith(("listener", "port", "bind"))
    ]
    assert listeners == ["listener 1883 127.0.0.1"]
