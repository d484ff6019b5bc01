"""What changed, as counters by topic: who watches compares them, in this process or another."""

from __future__ import annotations

import threading
from typing import Final

from sqlalchemy import Connection, select

from holdfast_server.store.database import Database
from holdfast_server.store.schema import changes
from holdfast_server.store.upsert import insert_into

TOPICS: Final = ("fleet", "rollouts", "rollbacks", "decisions", "releases")


def mark(connection: Connection, *topics: str) -> None:
    """Say, in the transaction that changes it, what has changed."""
    for topic in topics:
        assert topic in TOPICS, topic
        statement = insert_into(connection, changes).values(topic=topic, counter=1)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["topic"], set_={"counter": changes.c.counter + 1})
        )


def counters(connection: Connection) -> dict[str, int]:
    return {row.topic: row.counter for row in connection.execute(select(changes))}


class Watch:
    """Waits for commits of this process, and looks every so often for those of others."""

    __slots__ = ("_condition", "_database", "_generation")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._condition = threading.Condition()
        self._generation = 0
        database.after_commit(self._wake)

    def counters(self) -> dict[str, int]:
        with self._database.read() as connection:
            return counters(connection)

    @property
    def generation(self) -> int:
        """Grows with every commit of this process."""
        return self._generation

    def wait(self, timeout_s: float, *, since: int) -> bool:
        """Until something was committed here since that generation, or the time is over; whether something was."""
        with self._condition:
            return self._condition.wait_for(lambda: self._generation != since, timeout_s)

    def _wake(self) -> None:
        with self._condition:
            self._generation += 1
            self._condition.notify_all()
