"""The outbox onto the broker, and back: a document counts as published once the broker gave back exactly its bytes.

A retained message is not durable, so every connection begins with nothing published. A document that somebody else published
over is published again; devices refuse the other one by its signature, but one that comes new must find ours.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from sqlalchemy.exc import DBAPIError

from holdfast_server.ingest import floors
from holdfast_server.rollouts.context import Context
from holdfast_server.store import outbox
from holdfast_server.store.outbox import Stored
from holdfast_shared import topics

# A document that did not come back is sent again this often, and one that is overwritten is defended no more often.
AGAIN_S: Final = 5.0
# After so many times in vain, an operator is told.
TOLD_EVERY: Final = 6
FAULT_S: Final = 2.0
# Documents live for 400 days and are renewed at half of that.
RENEW_S: Final = 3600.0

log: Final = logging.getLogger(__name__)
Publish = Callable[[str, bytes], None]


class _Sent(NamedTuple):
    document: Stored
    at: float
    times: int


class Publisher:
    """`run` on one thread; everything else from any, without waiting."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._publish: Publish | None = None
        self._connections = 0
        self._begun = 0  # the connection for which the outbox knows that the broker may hold nothing
        self._sent: dict[str, _Sent] = {}
        self._held: dict[str, Stored] = {}  # came back as it was sent, and is not yet noted in the outbox
        self._overwritten: set[str] = set()
        self._renewed_at = -RENEW_S
        context.database.after_commit(self._woken.set)

    def connected(self, publish: Publish) -> None:
        """A connection stands: everything is published on it anew."""
        with self._lock:
            self._connections += 1
            self._publish = publish
            self._forget()
        self._woken.set()

    def gone(self) -> None:
        with self._lock:
            self._publish = None
            self._forget()

    def heard(self, topic: str, payload: bytes) -> None:
        """What the broker holds on an assignment's topic. Topics on which we sent nothing are not ours to judge."""
        with self._lock:
            sent = self._sent.get(topic)
            if sent is None:
                return
            if payload == sent.document.envelope:
                self._held[topic] = sent.document
                self._overwritten.discard(topic)
            else:
                self._overwritten.add(topic)
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. A fault of a look is logged and the next one tries again: nobody else would publish."""
        while not stop.is_set():
            self._woken.clear()
            wait_s = AGAIN_S
            try:
                if time.monotonic() - self._renewed_at >= RENEW_S:
                    floors.renew(self._context)
                    self._renewed_at = time.monotonic()
                wait_s = self._look()
            except DBAPIError as error:
                log.warning("the outbox cannot be read, trying again: %.300s", error)
                stop.wait(FAULT_S)
            except Exception:  # a bug; nobody else would publish
                log.exception("a look at the outbox failed")
                stop.wait(FAULT_S)
            self._woken.wait(wait_s)

    def wake(self) -> None:
        self._woken.set()

    def _forget(self) -> None:
        self._sent.clear()
        self._held.clear()
        self._overwritten.clear()

    def _look(self) -> float:
        """Note what came back, and send what should be there and is not; in how many seconds to look again."""
        with self._lock:
            publish, connection, held = self._publish, self._connections, dict(self._held)
            overwritten = set(self._overwritten)
        if publish is None:
            return AGAIN_S
        self._note(held, connection)
        with self._context.database.read() as reading:
            wanted = {self._topic(one): one for one in outbox.stored_documents(reading, unpublished=True)}
            if overwritten:
                stored = outbox.stored_documents(reading)
                wanted.update({topic: one for one in stored if (topic := self._topic(one)) in overwritten})
        now = time.monotonic()
        wait_s = AGAIN_S
        for topic, document in wanted.items():
            due_s = self._due(topic, document, now, connection, is_overwritten=topic in overwritten)
            if due_s is None:
                publish(topic, document.envelope)
            else:
                wait_s = min(wait_s, due_s)
        return wait_s

    def _note(self, held: dict[str, Stored], connection: int) -> None:
        if not held and self._begun == connection:
            return
        with self._context.database.write() as writing:
            if self._begun != connection:
                outbox.mark_all_unpublished(writing)
            for document in held.values():
                outbox.mark_published(writing, document)
        self._begun = connection
        with self._lock:
            for topic, document in held.items():
                if self._held.get(topic) is document:
                    del self._held[topic]

    def _due(self, topic: str, document: Stored, now: float, connection: int, *, is_overwritten: bool) -> float | None:
        """None: to be sent now, and noted as sent before it is, because it may come back at once. Else in how many seconds."""
        with self._lock:
            if self._connections != connection or self._publish is None:
                return AGAIN_S
            last = self._sent.get(topic)
            same = last is not None and last.document.envelope == document.envelope
            if last is not None and same and now - last.at < AGAIN_S:
                return AGAIN_S - (now - last.at)
            times = last.times + 1 if last is not None and same else 1
            self._sent[topic] = _Sent(document, now, times)
            self._overwritten.discard(topic)
        if is_overwritten:
            log.warning("somebody published over our document on %s; ours is published again", topic)
        elif times % TOLD_EVERY == 0:
            log.warning("the broker does not give back %s, sent %d times: may we publish and read there?", topic, times)
        return None

    def _topic(self, document: Stored) -> str:
        kind, _, name = document.scope.partition("/")
        of = topics.region_assignment if kind == "region" else topics.device_assignment
        return of(self._context.authorities.fleet, name, document.pipeline)
