"""The one queue that everything devices say goes through, and the thread that empties it into the database.

Whatever waits goes into one transaction, because a commit is an fsync and three hundred devices speak every few seconds. A
message is acknowledged after the commit and never before; a bad one is dropped, counted, and harms nobody beside it. While the
database is away everything waits: the queue fills, the broker holds back what it was not acknowledged, and nothing is lost.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from sqlalchemy import select

from holdfast_server.ingest import floors, presence, reading, recording
from holdfast_server.ingest.quota import PER_MINUTE, Quota
from holdfast_server.ingest.tally import HINTS_OVER_QUOTA, OVER_QUOTA, Tally
from holdfast_server.refusals import Limited
from holdfast_server.rollouts.context import Context
from holdfast_server.store.database import UNAVAILABLE
from holdfast_server.store.schema import memberships
from holdfast_shared.errors import HoldfastError, Missing
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire.report import Report

# One transaction: long enough to share the fsync, short enough that other writers wait some tens of milliseconds.
BATCH_MAX: Final = 256
# After the first message others are waited for: so a quiet fleet costs at most fifty commits a second.
GATHER_S: Final = 0.02
# Unacknowledged messages a broker may send us (its "receive maximum"): two batches. The queue holds as many again of those that
# need no acknowledgement, so what is acknowledged always finds room.
UNACKNOWLEDGED_MAX: Final = 2 * BATCH_MAX
QUEUE_MAX: Final = 2 * UNACKNOWLEDGED_MAX
# Only where the broker sends again, after reconnects, what waits here already can the queue be full: then its thread waits, for
# less than the keepalive.
OFFER_S: Final = 10.0
# Public keys of about the devices of one server, parsed.
KEYS_MAX: Final = 20_000
RETRY_S: Final = 1.0
LOOK_S: Final = 0.2
# A device that invents orders makes us issue documents anew: not more often than this.
RENEW_GAP_S: Final = 10.0

log: Final = logging.getLogger(__name__)


class Arrived(NamedTuple):
    """A message as it came, and how to say that it need not come again. `done` is called on the intake's thread."""

    device: str
    kind: Literal["health", "event", "presence"]
    payload: bytes
    done: Callable[[], None] | None


class _Believed(NamedTuple):
    arrived: Arrived
    report: Report | None
    presence: str


class Intake:
    """`offer` from any thread; `run` on one."""

    def __init__(
        self, context: Context, tally: Tally | None = None, *, quota: Quota | None = None, hints: Quota | None = None
    ) -> None:
        """`quota` is of what devices sign; `hints` of presence, which nobody does."""
        self.tally = tally if tally is not None else Tally()
        self._quota = quota if quota is not None else Quota()
        self._hints = hints if hints is not None else Quota()
        self._context = context
        self._waiting: queue.Queue[Arrived] = queue.Queue(maxsize=QUEUE_MAX)
        self._renew_wanted = False
        self._renewed_at = -RENEW_GAP_S

    def offer(self, arrived: Arrived) -> bool:
        """Take it in; False: no room, it must come again. What nobody acknowledges is dropped instead, and gives way first."""
        if arrived.done is None and self._waiting.qsize() >= QUEUE_MAX - UNACKNOWLEDGED_MAX:
            self.tally.dropped("queue-full", source=arrived.device, why="too many messages wait for the database")
            return True
        try:
            self._waiting.put(arrived, timeout=OFFER_S if arrived.done is not None else None)
        except queue.Full:
            return False
        return True

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. What is not committed by then is not acknowledged, and comes again."""
        while not stop.is_set():
            batch = self._gather()
            try:
                if batch:
                    self._take_in(batch, stop)
                if self._renew_wanted and time.monotonic() - self._renewed_at >= RENEW_GAP_S:
                    self._renew()
            except Exception:  # a bug; nobody else would take reports in, and what was not acknowledged comes again
                log.exception("a batch of %d messages was not taken in", len(batch))

    def _gather(self) -> list[Arrived]:
        try:
            batch = [self._waiting.get(timeout=LOOK_S)]
        except queue.Empty:
            return []
        until = time.monotonic() + GATHER_S
        while len(batch) < BATCH_MAX:
            try:
                batch.append(self._waiting.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return batch

    def _take_in(self, batch: Sequence[Arrived], stop: threading.Event) -> None:
        """Until it is stored: a database that is away comes back. Then acknowledge, the dropped ones too."""
        believed: list[_Believed] | None = None
        while not stop.is_set():
            try:
                if believed is None:  # once: what is dropped or charged is so only once
                    believed = self._believed(batch)
                self._store(believed)
                break
            except UNAVAILABLE as error:
                log.warning("the database takes nothing in, trying again: %.300s", error)
                stop.wait(RETRY_S)
        else:
            return
        for arrived in batch:
            if arrived.done is not None:
                arrived.done()

    def _believed(self, batch: Sequence[Arrived]) -> list[_Believed]:
        """Those of the batch that are what they say, verified and parsed."""
        devices = sorted({arrived.device for arrived in batch})
        with self._context.database.read() as connection:
            statement = select(memberships.c.device, memberships.c.public_key).where(memberships.c.device.in_(devices))
            keys = {row.device: row.public_key for row in connection.execute(statement)}
        found = []
        for arrived in batch:
            try:
                found.append(self._believe(arrived, keys.get(arrived.device)))
            except HoldfastError as refusal:
                self.tally.dropped(refusal.code, source=arrived.device, why=str(refusal))
        return found

    def _believe(self, arrived: Arrived, key: str | None) -> _Believed:
        """Verified, and within the device's quota. Raises HoldfastError."""
        now_s = time.monotonic()
        hint = arrived.kind == "presence"
        quota = self._hints if hint else self._quota
        if quota.used_up(arrived.device, now_s):  # asked first: it is not worth a verification
            raise Limited(
                f"it said more than {PER_MINUTE} things a minute after it had used up what it had saved",
                code=HINTS_OVER_QUOTA if hint else OVER_QUOTA,
                next_step="look at what makes it report so often, or who else may write its presence",
            )
        believed = self._read(arrived, key)
        quota.charge(arrived.device, now_s)
        return believed

    def _read(self, arrived: Arrived, key: str | None) -> _Believed:
        if key is None:
            raise Missing(
                "it is not enrolled here", field="device", code="unknown-device", next_step="holdfast device enrol"
            )
        if arrived.kind == "presence":
            return _Believed(arrived, None, presence.read(arrived.payload))
        report = reading.read(
            arrived.payload,
            fleet=self._context.authorities.fleet,
            device=arrived.device,
            kind=arrived.kind,
            key=_public_key(key),
        )
        return _Believed(arrived, report, "")

    def _store(self, believed: Sequence[_Believed]) -> None:
        """All in one transaction. If the database refuses one, find it by halves: the others are stored."""
        if not believed:
            return
        try:
            recorded = self._record(believed)
        except UNAVAILABLE:
            raise
        except Exception as error:  # one report of many; which one, the halves tell
            if len(believed) > 1:
                half = len(believed) // 2
                self._store(believed[:half])
                self._store(believed[half:])
                return
            log.exception("a report of %s could not be stored", believed[0].arrived.device)
            self.tally.dropped("unstorable", source=believed[0].arrived.device, why=str(error))
            return
        reports = sum(1 for one in believed if one.report is not None)
        self.tally.count("reports", recorded.new)
        self.tally.count("doubled", reports - recorded.new)
        for claim in recorded.disbelieved:
            self.tally.dropped("order-ahead", source="the order of a document that it holds", why=claim)
        self._renew_wanted |= recorded.overtaken

    def _record(self, believed: Sequence[_Believed]) -> recording.Recorded:
        reports = [one.report for one in believed if one.report is not None]
        said = {one.arrived.device: one.presence for one in believed if one.report is None}
        with self._context.database.write() as connection:
            now = self._context.now().at
            if said:
                presence.record(connection, said)
            return recording.record(connection, self._context.director, reports, now)

    def _renew(self) -> None:
        self._renew_wanted, self._renewed_at = False, time.monotonic()
        try:
            floors.renew(self._context)
        except UNAVAILABLE as error:
            self._renew_wanted = True
            log.warning("the database is away; documents are issued again later: %.300s", error)


@functools.lru_cache(maxsize=KEYS_MAX)
def _public_key(text: str) -> PublicKey:
    return PublicKey.from_text(text)
