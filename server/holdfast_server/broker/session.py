"""The server's session with the broker: keeps a connection, and brings each message to whom it is for.

Everything works on without the broker: reports wait on the devices, documents in the outbox, and devices ask over HTTP.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from holdfast_server.broker.command_desk import Asked, CommandDesk, answer_topic
from holdfast_server.broker.connection import Connection, Message, Subscription
from holdfast_server.broker.publisher import Publisher
from holdfast_server.ingest.intake import UNACKNOWLEDGED_MAX, Arrived, Intake
from holdfast_server.ingest.retention import Retention
from holdfast_server.rollouts.context import Context
from holdfast_shared import topics
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.wire import report

# The largest report, its topic and properties. The broker keeps from us what is larger.
PACKET_BYTES_MAX: Final = report.ENVELOPE_BYTES_MAX + 4096
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
# A connection that stood this long was a good one: after it the backoff begins anew.
STABLE_S: Final = 10.0
ANSWER_EXPIRES_S: Final = 60
CORRELATION_BYTES_MAX: Final = 1024
STOP_S: Final = 5.0

log: Final = logging.getLogger(__name__)


class BrokerSession:
    """`start` once, `stop` once; `connected` at any time."""

    def __init__(self, context: Context, url: str) -> None:
        """Raises Malformed when `url` is no broker's."""
        self._address = BrokerAddress.parse(url)
        self._fleet = context.authorities.fleet
        self.intake = Intake(context)
        self._publisher = Publisher(context)
        self._desk = CommandDesk(context, self.intake.tally)
        self._retention = Retention(context)
        self._stop_working, self._stop_listening = threading.Event(), threading.Event()
        self._up = threading.Event()
        self._workers: list[threading.Thread] = []
        self._listening: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker takes and gives messages now."""
        return self._up.is_set()

    def start(self) -> None:
        """Returns at once; the broker need not be there yet."""
        work: dict[str, Callable[[threading.Event], None]] = {
            "ingest": self.intake.run,
            "outbox": self._publisher.run,
            "commands": self._desk.run,
            "retention": self._retention.run,
        }
        self._workers = [
            threading.Thread(target=run, args=(self._stop_working,), name=name, daemon=True)
            for name, run in work.items()
        ]
        self._listening = threading.Thread(target=self._listen, name="broker", daemon=True)
        for thread in (*self._workers, self._listening):
            thread.start()

    def stop(self) -> None:
        """Finish what is begun, acknowledge it, and disconnect; within a deadline. The rest comes again."""
        deadline = time.monotonic() + STOP_S
        self._stop_working.set()
        self._publisher.wake()
        for thread in self._workers:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stop_listening.set()
        if self._listening is not None:
            self._listening.join(STOP_S)

    # ---------------------------------------------------------------- the connection
    def _listen(self) -> None:
        failures = 0
        while not self._stop_listening.is_set():
            began = time.monotonic()
            connection = Connection(
                self._address,
                client_id=f"holdfast-server-{self._fleet}",
                subscriptions=_subscriptions(self._fleet),
                listener=self,
                unacknowledged_max=UNACKNOWLEDGED_MAX,
                packet_bytes_max=PACKET_BYTES_MAX,
            )
            why = self._hold(connection)
            self._up.clear()
            self._publisher.gone()
            if self._stop_listening.is_set():
                return
            failures = 0 if time.monotonic() - began > STABLE_S else failures + 1
            pause_s = _jittered(failures)
            log.warning("no connection to the broker %s: %s; trying again in %.1f s", self._address, why, pause_s)
            self._stop_listening.wait(pause_s)

    def _hold(self, connection: Connection) -> str:
        """Open it, keep it until it ends or we do, and close it; why it ended."""
        try:
            connection.open()
            why = None
            while why is None and not self._stop_listening.is_set():
                why = connection.wait(0.2)
            return why or "we are stopping"
        except (OSError, ValueError) as error:
            return str(error)
        finally:
            connection.close()

    # ---------------------------------------------------------------- what comes, on the connection's thread
    def ready(self, connection: Connection) -> None:
        log.info("connected to the broker %s", self._address)
        self._up.set()
        self._publisher.connected(lambda topic, payload: connection.publish(topic, payload, retain=True))

    def received(self, connection: Connection, message: Message) -> None:
        found = topics.parse(self._fleet, message.topic)
        match found:
            case topics.Parsed(kind="health" | "event" | "presence" as kind, subject=device):
                if not self.intake.offer(Arrived(device, kind, message.payload, message.acknowledge)):
                    connection.abandon("the database takes nothing in, and we hold as much as we may")
            case topics.Parsed(kind="command", subject=verb):
                reply = self._reply(connection, message)
                self._desk.offer(Asked(verb, message.payload, reply, message.acknowledge))
            case topics.Parsed(kind="assignment"):
                self._publisher.heard(message.topic, message.payload)
                _let_go(message)
            case _:
                _let_go(message)

    def _reply(self, connection: Connection, message: Message) -> Callable[[bytes], None] | None:
        topic = answer_topic(self._fleet, message.response_topic)
        if topic is None or len(message.correlation or b"") > CORRELATION_BYTES_MAX:
            self.intake.tally.dropped(
                "no-answer-topic",
                source=message.topic,
                why="the answer to a command that names no topic of this fleet for it",
            )
            return None

        def reply(answer: bytes) -> None:
            connection.publish(topic, answer, retain=False, correlation=message.correlation, expires_s=ANSWER_EXPIRES_S)

        return reply


def _subscriptions(fleet: str) -> list[Subscription]:
    """Assignments at QoS 0: what comes back must be from now, not from a queue that waited for us."""
    return [
        Subscription(topics.health(fleet, "+"), qos=1, retained=False),
        Subscription(topics.event(fleet, "+"), qos=1, retained=False),
        Subscription(topics.presence(fleet, "+"), qos=1, retained=True),
        Subscription(topics.command(fleet, "+"), qos=1, retained=False),
        Subscription(topics.region_assignment(fleet, "+", "+"), qos=0, retained=True),
        Subscription(topics.device_assignment(fleet, "+", "+"), qos=0, retained=True),
    ]


def _let_go(message: Message) -> None:
    if message.acknowledge is not None:
        message.acknowledge()


def _jittered(failures: int) -> float:
    """Full jitter, so that a fleet's servers and a broker that comes back do not meet again and again."""
    limit = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10))
    return random.uniform(BACKOFF_FIRST_S / 5, limit)  # noqa: S311 - spreads reconnects; nobody gains by guessing it
