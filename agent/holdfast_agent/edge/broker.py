"""The session with the MQTT 5 broker: bytes in, events out; the only place of the device that knows paho.

Every paho call is made on the network's thread, and every callback is guarded: paho dies silently of an exception in one.
A connection that ended is never used again, so nothing is queued in paho's memory: what was not acknowledged is in the spool,
and its owner sends it again after `Connected`. Retained documents come again by themselves, so no session is kept at the broker.
"""

from __future__ import annotations

import functools
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, ParamSpec

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from holdfast_agent.edge.network import REST_S, TICK_S, Network
from holdfast_shared import topics
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
# A connection that ends sooner counts as a failure: two devices of one name must not chase each other off at full speed.
STABLE_S: Final = 30.0
# For the TCP connection, and again for the broker's answer.
CONNECT_S: Final = 5.0
# Reports under way at once; the others wait in the spool.
UNANSWERED_MAX: Final = 64
# A document, its topic and properties. The broker drops what is larger instead of sending it.
PACKET_BYTES_MAX: Final = ENVELOPE_BYTES_MAX + 1024
STOP_S: Final = 2.0
# A PUBACK's reason (MQTT 5, 3.4.2.1) that is no failure to MQTT, and one to us.
NO_MATCHING_SUBSCRIBERS: Final = 0x10

log: Final = logging.getLogger(__name__)
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Connected:
    """`publish` works from here on; documents follow by themselves. What was `Sent` before stays sent, nothing else does."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection ended, or could not be made; it is tried again. What was not `Sent` must be published again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message on one of the device's assignment topics, unjudged, never empty."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker acknowledged the message that was published with this token."""

    token: int


@dataclass(frozen=True, slots=True)
class Unheard:
    """The broker took the message and had nobody to give it to, such as after a restart that lost the server's session.

    It is not sent: the server never sees it. Publish it again, later.
    """

    token: int


BrokerEvent = Connected | Gone | Received | Sent | Unheard


class BrokerSession:
    """Keeps one connection for as long as it runs. `emit` is called on the network's thread and must not wait.

    `network`: one that runs already, to be shared; by default the session has its own.
    """

    def __init__(
        self,
        *,
        url: str,
        fleet: str,
        device: str,
        region: str,
        keepalive_s: int,
        emit: Callable[[BrokerEvent], None],
        network: Network | None = None,
    ) -> None:
        self._fleet, self._device, self._region = fleet, device, region
        self._url, self._keepalive_s, self._emit = url, keepalive_s, emit
        self._own = Network(f"broker-{device}") if network is None else None
        self._network = network or self._own or Network()
        self._client: paho.Client | None = None
        self._failures, self._due, self._since, self._misc = 0, 0.0, 0.0, 0.0
        self._connected, self._stopped = False, threading.Event()
        self._stopping = False
        # Shared with `publish`: which connection stands (None: none), and how many of its messages are unanswered.
        self._lock = threading.Lock()
        self._open: paho.Client | None = None
        self._unanswered = 0
        self._tokens: dict[int, int] = {}

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        if self._own is not None:
            self._own.start()
        self._network.call(lambda: self._network.join(self))

    def stop(self) -> None:
        """Say `offline` and end, within STOP_S. From another thread than the network's."""
        self._network.call(self._leave)
        self._stopped.wait(STOP_S)
        self._network.call(self._abandon)
        if self._own is not None:
            self._own.stop()

    def publish(self, topic: str, payload: bytes, token: int) -> bool:
        """QoS 1, from any thread, without waiting; False while not connected, or with UNANSWERED_MAX under way."""
        with self._lock:
            client = self._open
            if client is None or self._unanswered >= UNANSWERED_MAX:
                return False
            self._unanswered += 1
        self._network.call(lambda: self._send(client, topic, payload, token))
        return True

    # On the network's thread from here on.

    def turn(self, now: float) -> float:
        """Connect when it is due, and let paho look after its keepalive."""
        client = self._client
        if client is None:
            if not self._stopping and now >= self._due:
                self._connect()
            return TICK_S
        if not self._connected and now - self._since > CONNECT_S:
            self._end(client, "the broker did not answer")
            return TICK_S
        if now - self._misc >= REST_S:
            self._misc = now
            client.loop_misc()
        self._watch()
        return REST_S if self._connected else TICK_S

    def ready(self, *, readable: bool, writable: bool) -> None:
        client = self._client
        if client is None:
            return
        result = client.loop_read() if readable else MQTTErrorCode.MQTT_ERR_SUCCESS
        waiting = client.socket()
        while result == MQTTErrorCode.MQTT_ERR_SUCCESS and isinstance(waiting, ssl.SSLSocket) and waiting.pending():
            result, waiting = client.loop_read(), client.socket()  # decrypted already: no event will tell of it
        if writable:
            client.loop_write()

    def _connect(self) -> None:
        address = BrokerAddress.parse(self._url, field="[broker] url")
        self._client = client = self._prepared(tls=address.tls)
        wishes: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        wishes.MaximumPacketSize = PACKET_BYTES_MAX
        self._connected, self._since = False, time.monotonic()
        try:
            client.connect(
                address.host,
                address.port,
                keepalive=self._keepalive_s,
                clean_start=True,
                properties=wishes,
            )
        except (OSError, ValueError) as error:
            self._end(client, f"cannot connect to {self._url}: {error}")
            return
        self._since = time.monotonic()
        self._watch()

    def _prepared(self, *, tls: bool) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._device, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        client.suppress_exceptions = True
        if tls:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(topics.presence(self._fleet, self._device), b"offline", qos=1, retain=True)
        client.on_connect = _guarded(self._on_connect)
        client.on_message = _guarded(self._on_message)
        client.on_publish = _guarded(self._on_publish)
        client.on_subscribe = _guarded(self._on_subscribe)
        client.on_disconnect = _guarded(self._on_disconnect)
        client.on_socket_close = _guarded(self._on_socket_close)
        # Its presence alone makes paho leave the writing to us instead of writing from inside `publish`.
        client.on_socket_register_write = _ignored
        return client

    def _watch(self) -> None:
        client = self._client
        if client is not None and (used := client.socket()) is not None:
            self._network.watch(used.fileno(), self, writing=client.want_write())

    def _send(self, client: paho.Client, topic: str, payload: bytes, token: int) -> None:
        if client is not self._client:
            return  # its owner has heard `Gone`
        self._tokens[client.publish(topic, payload, qos=1).mid] = token
        self._watch()

    def _leave(self) -> None:
        """Part with the will: the broker itself then says `offline`, after everything that we published."""
        self._stopping = True
        with self._lock:
            self._open = None
        if self._client is None:
            self._stopped.set()
            return
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message"))
        self._watch()

    def _abandon(self) -> None:
        self._network.leave(self)
        if self._client is not None:
            self._end(self._client, "stopped")

    def _end(self, client: paho.Client, reason: str) -> None:
        """Whatever ended it, say so once, and try again later: full jitter, so that a fleet does not come back as one."""
        if client is not self._client:
            return
        self._client = None
        now = time.monotonic()
        self._failures = 0 if self._connected and now - self._since >= STABLE_S else self._failures + 1
        limit = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(max(self._failures - 1, 0), 10))
        self._due = now + random.uniform(0.05, limit)  # noqa: S311 - spreads reconnects; nobody gains by guessing it
        self._connected = False
        self._tokens.clear()
        with self._lock:
            self._open, self._unanswered = None, 0
        if (used := client.socket()) is not None:
            self._network.forget(used.fileno())
            client.on_disconnect = None
            used.close()
        if self._stopping:
            self._stopped.set()
        self._emit(Gone(reason))

    def _on_connect(self, client: paho.Client, _: object, __: object, reason: Any, ___: object) -> None:
        if reason.is_failure:
            self._end(client, f"the broker refused the connection: {reason}")
            return
        assignments = (
            topics.region_assignment(self._fleet, self._region, "+"),
            topics.device_assignment(self._fleet, self._device, "+"),
        )
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in assignments])
        client.publish(topics.presence(self._fleet, self._device), b"online", qos=1, retain=True)
        self._connected, self._since = True, time.monotonic()
        with self._lock:
            self._open = None if self._stopping else client
        self._emit(Connected())

    def _on_subscribe(self, _: object, __: object, ___: object, reasons: Any, ____: object) -> None:
        for reason in reasons:
            if reason.is_failure:  # polling goes on without it
                log.error("the broker refuses a subscription to our assignments: %s", reason)

    def _on_message(self, client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        if client is self._client and message.payload:
            self._emit(Received(message.topic, bytes(message.payload)))

    def _on_publish(self, client: paho.Client, _: object, mid: int, reason: Any, __: object) -> None:
        token = self._tokens.pop(mid, None) if client is self._client else None
        if token is None:
            return  # our own presence
        if reason.is_failure:  # it stays in the spool; the next connection tries again, ever more slowly
            self._end(client, f"the broker refused a report: {reason}")
            return
        with self._lock:
            self._unanswered -= 1
        self._emit(Unheard(token) if reason.value == NO_MATCHING_SUBSCRIBERS else Sent(token))

    def _on_disconnect(self, client: paho.Client, _: object, flags: Any, reason: Any, __: object) -> None:
        said = flags.is_disconnect_packet_from_server
        self._end(client, f"the broker ended it: {reason}" if said else f"the connection was lost ({reason})")

    def _on_socket_close(self, _: object, __: object, closing: paho.SocketLike) -> None:
        self._network.forget(closing.fileno())


def _ignored(*_: object) -> None:
    """Nothing: `_watch` asks paho what it wants."""


def _guarded(callback: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(callback)
    def call(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            callback(*arguments, **named)
        except Exception:  # paho's loop would end
            log.exception("a callback of the broker session failed")

    return call
