"""One request over MQTT 5: published on `command/<verb>`, answered on a response topic with correlation data.

The only place here that knows paho. Whatever goes wrong ends in one error within the deadline.
"""

from __future__ import annotations

import json
import queue
import secrets
import ssl
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from holdfast_cli.failures import Unreachable, refused
from holdfast_shared import topics
from holdfast_shared.broker_address import BrokerAddress

ANSWER_S: Final = 15.0
CONNECT_S: Final = 5.0
# An answer holds one rollback; more is somebody else's message.
ANSWER_BYTES_MAX: Final = 1024 * 1024
_KEEPALIVE_S: Final = 30


def answer_topic(fleet: str, client: str) -> str:
    """Where a request of ours is answered: a topic of this one client's."""
    return f"holdfast/{fleet}/answer/{client}"


def ask(address: BrokerAddress, *, fleet: str, verb: str, message: bytes, answer_s: float = ANSWER_S) -> Any:
    """Send a signed command and wait for its answer. Raises Refused as the server answered, or Unreachable."""
    name = f"holdfast-cli-{secrets.token_hex(6)}"
    correlation = secrets.token_bytes(16)
    reply_to = answer_topic(fleet, name)
    happened: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    client = _client(address, name, correlation, happened)
    try:
        client.connect(address.host, address.port, keepalive=_KEEPALIVE_S)
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error)) from error
    client.loop_start()
    try:
        _await(happened, "connected", address, CONNECT_S)
        client.subscribe(reply_to, qos=1)
        _await(happened, "subscribed", address, CONNECT_S)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.ResponseTopic = reply_to
        properties.CorrelationData = correlation
        properties.MessageExpiryInterval = int(answer_s) + 1
        client.publish(topics.command(fleet, verb), message, qos=1, properties=properties)
        raw = _await(happened, "answered", address, answer_s)
    finally:
        client.disconnect()
        client.loop_stop()
    return _read(raw, address)


def _client(
    address: BrokerAddress, name: str, correlation: bytes, happened: queue.SimpleQueue[tuple[str, Any]]
) -> paho.Client:
    """Callbacks only put what happened into the queue: an exception in one would kill paho's thread silently."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.connect_timeout = CONNECT_S
    if address.user is not None:
        client.username_pw_set(address.user, address.password)
    if address.tls:
        client.tls_set_context(ssl.create_default_context())

    def on_connect(_: object, __: object, ___: object, reason: Any, ____: object) -> None:
        happened.put(
            ("failed", f"the broker refused the connection: {reason}") if reason.is_failure else ("connected", None)
        )

    def on_subscribe(_: object, __: object, ___: object, reasons: Any, ____: object) -> None:
        bad = [reason for reason in reasons if reason.is_failure]
        happened.put(("failed", f"the broker refused the response topic: {bad[0]}") if bad else ("subscribed", None))

    def on_message(_: object, __: object, message: paho.MQTTMessage) -> None:
        if getattr(message.properties, "CorrelationData", None) == correlation:
            happened.put(("answered", bytes(message.payload)))

    def on_publish(_: object, __: object, ___: object, reason: Any, ____: object) -> None:
        if reason.is_failure:
            happened.put(("failed", f"the broker refused the command: {reason}"))

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.on_publish = on_publish
    return client


def _await(happened: queue.SimpleQueue[tuple[str, Any]], wanted: str, address: BrokerAddress, within_s: float) -> Any:
    while True:  # ends at what is wanted, at a failure, or at the deadline of the queue
        try:
            what, value = happened.get(timeout=within_s)
        except queue.Empty as error:
            raise _unreachable(address, f"nothing within {within_s:g} s (waiting to be {wanted})") from error
        if what == "failed":
            raise _unreachable(address, str(value))
        if what == wanted:
            return value


def _unreachable(address: BrokerAddress, why: str) -> Unreachable:
    return Unreachable(
        f"no answer through {address}: {why}",
        field="--mqtt",
        next_step="check that the broker and holdfast-server run and are connected; the command may have been carried out: "
        "look with `holdfast rollbacks` before you repeat it",
    )


def _read(raw: bytes, address: BrokerAddress) -> Any:
    try:
        body = json.loads(raw) if len(raw) <= ANSWER_BYTES_MAX else None
    except ValueError:
        body = None
    if not isinstance(body, dict) or not body.get("ok"):
        raise refused(body, status=0, where=str(address))
    return body
