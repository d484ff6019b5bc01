"""One connection to an MQTT 5 broker, from CONNECT to its end; the only place of the server that knows paho.

Bytes in, events out. A connection that ended is never used again: the next one is a new client of the same name, and the broker
sends again whatever this one did not acknowledge. So an acknowledgement can never reach another connection's message.

paho's thread dies silently of an exception in a callback: every callback here ends in `_guarded`. A listener that waits in it
holds the broker back, and loses the connection if it waits for longer than the keepalive.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, ParamSpec, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from holdfast_shared.broker_address import BrokerAddress

KEEPALIVE_S: Final = 30
CONNECT_S: Final = 5.0
# How long the broker keeps for us what devices said while we were away.
SESSION_KEPT_S: Final = 86_400
CLOSE_S: Final = 2.0
_RETAINED_NOW, _RETAINED_NEVER = 0, 2

log: Final = logging.getLogger(__name__)
P = ParamSpec("P")


class Subscription(NamedTuple):
    """`retained`: whether what the broker holds is wanted at once, or only what comes from now on."""

    topic: str
    qos: int
    retained: bool


class Message(NamedTuple):
    """`acknowledge`: to be called once, from any thread, when it need not come again; None for QoS 0."""

    topic: str
    payload: bytes
    acknowledge: Callable[[], None] | None
    response_topic: str | None
    correlation: bytes | None


class Listener(Protocol):
    """Called on the connection's thread."""

    def ready(self, connection: Connection) -> None:
        """It is connected, and every subscription is answered."""

    def received(self, connection: Connection, message: Message) -> None: ...


class Connection:
    """`open` once, `close` once; `publish` from any thread, in between."""

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        subscriptions: Sequence[Subscription],
        listener: Listener,
        unacknowledged_max: int,
        packet_bytes_max: int,
    ) -> None:
        self._address, self._subscriptions, self._listener = address, subscriptions, listener
        self._ready, self._ended = threading.Event(), threading.Event()
        self._why = ""
        self._abandoned = False
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._acknowledgements = InOrder(lambda mid: client.ack(mid, 1))
        client.connect_timeout = CONNECT_S
        client.suppress_exceptions = True
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = _guarded(self._on_connect)
        client.on_subscribe = _guarded(self._on_subscribe)
        client.on_message = _guarded(self._on_message)
        client.on_disconnect = _guarded(self._on_disconnect)
        self._wishes: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        self._wishes.SessionExpiryInterval = SESSION_KEPT_S
        self._wishes.ReceiveMaximum = unacknowledged_max
        self._wishes.MaximumPacketSize = packet_bytes_max

    def open(self) -> None:
        """Connect and subscribe. Raises OSError or ValueError when nobody is there, TimeoutError when it does not answer."""
        self._client.connect(
            self._address.host,
            self._address.port,
            keepalive=KEEPALIVE_S,
            clean_start=False,
            properties=self._wishes,
        )
        self._client.loop_start()
        if not self._ready.wait(CONNECT_S) and not self._ended.is_set():
            raise TimeoutError(f"the broker did not answer within {CONNECT_S:g} s")

    def wait(self, timeout_s: float) -> str | None:
        """Until it ended, and why; None while it stands."""
        return self._why if self._ended.wait(timeout_s) else None

    def abandon(self, why: str) -> None:
        """Take no more of it, and let it end: what is not acknowledged comes again on the next one. From any thread."""
        self._why, self._abandoned = why, True
        self._client.disconnect()

    def close(self) -> None:
        self._client.disconnect()
        if self._ended.wait(CLOSE_S):
            with contextlib.suppress(AttributeError):  # paho's thread may end, and forget itself, while paho joins it
                self._client.loop_stop()
            # Without a way back to us, the client goes as soon as we do, and closes the sockets that only it knows.
            self._client.on_connect = self._client.on_subscribe = None
            self._client.on_message = self._client.on_disconnect = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool,
        correlation: bytes | None = None,
        expires_s: int | None = None,
    ) -> None:
        """QoS 1. While it is not connected nothing is sent, and nothing is raised."""
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        if correlation is not None:
            properties.CorrelationData = correlation
        if expires_s is not None:
            properties.MessageExpiryInterval = expires_s
        if not self._ended.is_set():
            self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)

    def _on_connect(self, _: object, __: object, ___: object, reason: Any, ____: object) -> None:
        if reason.is_failure:
            self._end(f"the broker refused the connection: {reason}")
            return
        self._client.subscribe(
            [
                (
                    one.topic,
                    SubscribeOptions(qos=one.qos, retainHandling=_RETAINED_NOW if one.retained else _RETAINED_NEVER),
                )
                for one in self._subscriptions
            ]
        )

    def _on_subscribe(self, _: object, __: object, ___: object, reasons: Sequence[Any], ____: object) -> None:
        for one, reason in zip(self._subscriptions, reasons, strict=False):
            if reason.is_failure:
                log.error("the broker refuses our subscription to %s: %s", one.topic, reason)
        if not self._ended.is_set():
            self._ready.set()
            self._listener.ready(self)

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        if self._abandoned:
            return
        acknowledge = self._acknowledgements.expect(message.mid) if message.qos else None
        try:
            self._listener.received(
                self,
                Message(
                    message.topic,
                    bytes(message.payload),
                    acknowledge,
                    getattr(message.properties, "ResponseTopic", None),
                    getattr(message.properties, "CorrelationData", None),
                ),
            )
        except Exception:  # a message that we cannot digest must not come again for ever
            log.exception("a message was passed over")
            if acknowledge is not None:
                acknowledge()

    def _on_disconnect(self, _: object, __: object, ___: object, reason: Any, ____: object) -> None:
        self._end(str(reason))

    def _end(self, why: str) -> None:
        if not self._ended.is_set():
            self._why = self._why or why
            self._ended.set()
        self._ready.set()  # nobody waits for it any longer


class InOrder:
    """Acknowledgements leave in the order in which messages came (MQTT 5, 4.6), whoever is done with them first."""

    __slots__ = ("_lock", "_send", "_waiting")

    def __init__(self, send: Callable[[int], object]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._waiting: deque[list[Any]] = deque()

    def expect(self, mid: int) -> Callable[[], None]:
        """A message came; the returned function says that it is done with. It may be called again, in vain."""
        entry = [mid, False]
        with self._lock:
            self._waiting.append(entry)
        return lambda: self._done(entry)

    def _done(self, entry: list[Any]) -> None:
        with self._lock:
            entry[1] = True
            while self._waiting and self._waiting[0][1]:
                self._send(self._waiting.popleft()[0])


def _guarded(callback: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(callback)
    def call(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            callback(*arguments, **named)
        except Exception:  # paho's thread would die silently
            log.exception("a callback of the broker's connection failed")

    return call
