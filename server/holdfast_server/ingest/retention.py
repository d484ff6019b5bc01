"""What devices said, forgotten in small steps once nobody judges by it: no step holds up a writer for long.

Active rollouts keep the windows and events of their release, however old. Of every incarnation the newest number is kept, so
that an old report of it, sent again much later, is not taken for a device that began anew.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select, tuple_
from sqlalchemy.exc import DBAPIError

from holdfast_server.core.rollout import ACTIVE
from holdfast_server.rollouts import storage
from holdfast_server.rollouts.context import Context
from holdfast_server.store.schema import device_events, memberships, reports_seen, windows

DAY_US: Final = 86_400 * 1_000_000
# Longer than any spool holds a report. Windows and events are unique by keys of their own for as long as they are kept.
SEEN_KEPT_US: Final = 7 * DAY_US
# As long as the longest wave may take.
WINDOWS_KEPT_US: Final = 30 * DAY_US
# What broke on a device, for people who look back over a season.
EVENTS_KEPT_US: Final = 90 * DAY_US
# Rows of one step: some milliseconds of the one writer.
STEP_ROWS: Final = 500
STEP_GAP_S: Final = 0.2
ROUND_S: Final = 3600.0

log: Final = logging.getLogger(__name__)


class Retention:
    """`run` on a thread of its own, or `round` at once."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, stop: threading.Event) -> None:
        """A round every hour, until `stop`."""
        while not stop.is_set():
            try:
                for _ in self.steps():
                    if stop.wait(STEP_GAP_S):
                        return
            except DBAPIError as error:
                log.warning("old reports stay for another hour: %.300s", error)
            stop.wait(ROUND_S)

    def round(self) -> int:
        """Forget all that is old, without pauses; how many rows."""
        return sum(self.steps())

    def steps(self) -> Iterator[int]:
        """One step at each `next`: how many rows it forgot. It writes only where there is something old."""
        now = self._context.now().at
        for pipeline in self._pipelines():
            yield from self._while_full(self._forget_windows, pipeline, now - WINDOWS_KEPT_US)
        yield from self._forget_events(now - EVENTS_KEPT_US)
        for device in self._devices():
            yield from self._while_full(self._forget_seen, device, now - SEEN_KEPT_US)

    def _while_full(self, forget: Any, what: str, before: int) -> Iterator[int]:
        forgotten = STEP_ROWS
        while forgotten == STEP_ROWS:
            forgotten = forget(what, before)
            if forgotten:
                yield forgotten

    def _pipelines(self) -> list[str]:
        """Every pipeline that has a window, one look at the index each."""
        found: list[str] = []
        with self._context.database.read() as connection:
            while True:  # ends at the last: each is greater than the one before
                statement = select(func.min(windows.c.pipeline))
                if found:
                    statement = statement.where(windows.c.pipeline > found[-1])
                following = connection.execute(statement).scalar_one()
                if following is None:
                    return found
                found.append(following)

    def _devices(self) -> list[str]:
        with self._context.database.read() as connection:
            return list(connection.execute(select(memberships.c.device).order_by(memberships.c.device)).scalars())

    def _forget_windows(self, pipeline: str, before: int) -> int:
        key = (windows.c.device, windows.c.incarnation, windows.c.pipeline, windows.c.window)
        with self._context.database.read() as connection:
            old = [
                tuple(row)
                for row in connection.execute(
                    select(*key)
                    .where(
                        windows.c.pipeline == pipeline,
                        windows.c.received_at < before,
                        windows.c.release_digest.not_in(_judged(connection)),
                    )
                    .limit(STEP_ROWS)
                )
            ]
        return self._delete(windows, tuple_(*key), old)

    def _forget_events(self, before: int) -> Iterator[int]:
        """By number: they grow with the time that they came."""
        last = 0
        while True:  # ends at the first young one, or with the table
            statement = (
                select(device_events.c.id, device_events.c.release_digest, device_events.c.received_at)
                .where(device_events.c.id > last)
                .order_by(device_events.c.id)
                .limit(STEP_ROWS)
            )
            with self._context.database.read() as connection:
                judged = set(_judged(connection))
                rows = connection.execute(statement).all()
            old = list(itertools.takewhile(lambda row: row.received_at < before, rows))
            if not old:
                return
            last = old[-1].id
            forgotten = [row.id for row in old if row.release_digest not in judged]
            yield self._delete(device_events, device_events.c.id, forgotten)

    def _forget_seen(self, device: str, before: int) -> int:
        newest = (
            select(func.max(reports_seen.c.number).label("number"), reports_seen.c.incarnation)
            .where(reports_seen.c.device == device)
            .group_by(reports_seen.c.incarnation)
            .subquery()
        )
        key = (reports_seen.c.device, reports_seen.c.incarnation, reports_seen.c.number)
        with self._context.database.read() as connection:
            old = [
                tuple(row)
                for row in connection.execute(
                    select(*key)
                    .join_from(reports_seen, newest, reports_seen.c.incarnation == newest.c.incarnation)
                    .where(
                        reports_seen.c.device == device,
                        reports_seen.c.received_at < before,
                        reports_seen.c.number < newest.c.number,
                    )
                    .limit(STEP_ROWS)
                )
            ]
        return self._delete(reports_seen, tuple_(*key), old)

    def _delete(self, table: Any, key: Any, old: list[Any]) -> int:
        if not old:
            return 0
        with self._context.database.write() as connection:
            return connection.execute(delete(table).where(key.in_(old))).rowcount


def _judged(connection: Connection) -> list[str]:
    """Digests of the releases that active rollouts judge."""
    return [one.plan.release.digest for one in storage.rollouts(connection, states=tuple(ACTIVE))]
