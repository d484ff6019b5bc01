"""Reports that the server has not acknowledged yet: on disk before they are sent, gone once they are.

- `put` returns when the report survives a power cut. The journal is a write-ahead log with `synchronous=FULL`: one fsync a
  report of 4 kB, p50 0.19 ms on this project's development machine, against 0.76 ms with a rollback journal.
- It is bounded in number and in bytes. What goes first is the oldest *health*; events tell what happened once, so they go last.
- A damaged file is moved aside and begun anew, and said so: a spool that cannot be read must not stop a device from reporting.

SQLite's own faults of the disk come out as OSError, like those of `durable`: the caller goes on serving, and tries again.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from holdfast_shared import durable

T = TypeVar("T")

# 10 000 health reports of a day without a network are about 40 MB; more would be somebody filling the disk.
SIZE_BYTES_MAX: Final = 128 * 1024**2
BUSY_S: Final = 5.0
_FORMAT: Final = 1
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_ERRNO: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS reports (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    envelope BLOB NOT NULL
)"""

log: Final = logging.getLogger(__name__)


class Spooled(NamedTuple):
    """`kind` is `health` or `event`: the topic it goes to."""

    number: int
    kind: str
    envelope: bytes


class Spool:
    """One thread uses it, the one that made it. Every method may be repeated."""

    def __init__(
        self,
        path: Path,
        reports_max: int,
        *,
        size_bytes_max: int = SIZE_BYTES_MAX,
        on_damage: Callable[[str], None] = log.error,
    ) -> None:
        self._path, self._on_damage = path, on_damage
        self._reports_max, self._size_bytes_max = reports_max, size_bytes_max
        self._count = self._size_bytes = 0
        self._database: sqlite3.Connection | None = None
        durable.make_folder(path.parent)
        self._run(lambda _: None)

    def put(self, number: int, kind: str, envelope: bytes) -> None:
        """Keep a report, durably; a number that is there already stays as it is. Raises OSError when the disk refuses."""

        def insert(database: sqlite3.Connection) -> None:
            with database:
                added = database.execute(
                    "INSERT INTO reports (number, kind, envelope) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (number, kind, envelope),
                ).rowcount
                gone = self._make_room(database, self._count + added, self._size_bytes + added * len(envelope))
            self._count += added - len(gone)
            self._size_bytes += added * len(envelope) - sum(gone)

        self._run(insert)

    def oldest(self, limit: int) -> list[Spooled]:
        """Up to `limit` reports, by number."""

        def select(database: sqlite3.Connection) -> list[Spooled]:
            rows = database.execute("SELECT number, kind, envelope FROM reports ORDER BY number LIMIT ?", (limit,))
            return [Spooled(number, kind, bytes(envelope)) for number, kind, envelope in rows]

        return self._run(select)

    def acknowledge(self, number: int) -> None:
        """Forget a report that the broker has taken; one that is not there is no error."""

        def delete(database: sqlite3.Connection) -> None:
            with database:
                gone = database.execute(
                    "DELETE FROM reports WHERE number = ? RETURNING length(envelope)", (number,)
                ).fetchall()
            self._count -= len(gone)
            self._size_bytes -= sum(size for (size,) in gone)

        self._run(delete)

    def count(self) -> int:
        return self._count

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _make_room(self, database: sqlite3.Connection, count: int, size_bytes: int) -> list[int]:
        """Delete what is too much, in `put`'s transaction; the sizes of what went. It may be the new report itself."""
        gone: list[int] = []
        while count > self._reports_max or size_bytes > self._size_bytes_max:  # each turn deletes one, or ends it
            row = database.execute(
                "DELETE FROM reports WHERE number = (SELECT number FROM reports ORDER BY kind <> 'health', number LIMIT 1)"
                " RETURNING length(envelope)"
            ).fetchone()
            if row is None:
                break
            gone.append(row[0])
            count, size_bytes = count - 1, size_bytes - row[0]
        return gone

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on the database; once more on a new one when this one turns out to be damaged."""
        try:
            try:
                return work(self._opened())
            except sqlite3.DatabaseError as error:
                if _primary(error) not in _DAMAGE:
                    raise
                self._move_aside(str(error))
                return work(self._opened())
        except sqlite3.Error as error:
            number = _ERRNO.get(_primary(error))
            if number is None:
                raise
            raise OSError(number, f"{self._path}: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        database = sqlite3.connect(self._path, timeout=BUSY_S)
        try:
            self._count, self._size_bytes = _prepare(database)
        except BaseException:
            database.close()
            raise
        durable.sync_folder(self._path.parent)  # SQLite makes its journal's name durable, not the database's
        self._database = database
        return database

    def _move_aside(self, why: str) -> None:
        """Keep the damaged file for whoever looks into it (the newest alone), and begin with an empty one."""
        self.close()
        aside = self._path.with_name(self._path.name + ".damaged")
        for ending in ("-wal", "-shm"):
            durable.remove(self._path.with_name(self._path.name + ending))
        durable.rename_into_place(self._path, aside)
        self._on_damage(f"the spool was damaged ({why}): moved to {aside}, its reports are lost, begun anew")


def _prepare(database: sqlite3.Connection) -> tuple[int, int]:
    """Reports and bytes in it. Raises DatabaseError of the kind `_DAMAGE` for a file that is not a whole spool."""
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
    ((version,),) = database.execute("PRAGMA user_version").fetchall()
    if verdict != "ok" or version not in (0, _FORMAT):
        raise _damaged(verdict if verdict != "ok" else f"its format is {version}, not {_FORMAT}")
    with database:
        database.execute(_TABLE)
        database.execute(f"PRAGMA user_version = {_FORMAT}")
    try:
        ((count, size_bytes),) = database.execute(
            "SELECT count(number), coalesce(sum(length(envelope)), 0) FROM reports WHERE kind IS NOT NULL"
        ).fetchall()
    except sqlite3.OperationalError as error:
        raise _damaged(f"its table is not a spool's: {error}") from error
    return count, size_bytes


def _damaged(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _primary(error: sqlite3.Error) -> int:
    """The primary result code; the extended ones carry details in their upper bits."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
