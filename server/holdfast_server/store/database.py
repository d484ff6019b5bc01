"""One way to the database: short read transactions on a snapshot, and write transactions one after another.

Writers queue on a lock of this process first, because SQLite's own waiting is unfair; between processes SQLite's
`BEGIN IMMEDIATE`, or an advisory lock on PostgreSQL, does the same. Whoever must know of a commit is called after it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError

from holdfast_shared.errors import Malformed

BUSY_TIMEOUT_MS: Final = 10_000
# Threads of the web server, and the few of ingest, outbox and scheduler: none ever waits for a connection.
CONNECTIONS_MAX: Final = 48
# What is raised while it is away, or cannot write: nobody's fault who asked. It may be asked again.
UNAVAILABLE: Final = (OperationalError, InterfaceError, InternalError)
# A PostgreSQL whose machine is gone answers nothing at all: whoever asks is not kept longer than this.
CONNECT_S: Final = 5
SILENCE_S: Final = 15
_BEGIN: Final = "holdfast_begin"
_WRITER_LOCK: Final = 0x686F6C64  # "hold": the one advisory lock of writers
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


class Database:
    """Safe to share between threads."""

    __slots__ = ("_listeners", "_reader", "_writer", "_writing", "engine")

    def __init__(self, url: URL) -> None:
        self.engine = _engine(url)
        self._writing = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._reader: Engine
        self._writer: Engine
        if self.engine.dialect.name == "sqlite":
            self._reader = self.engine.execution_options(**{_BEGIN: "BEGIN"})
            self._writer = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        else:
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
            self._writer = self.engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot. Keep it short, and write nothing."""
        with self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; committed at the end, rolled back on any exception.

        Not to be nested. Call nothing inside that waits for the network.
        """
        with self._writing, self._writer.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER_LOCK})
            yield connection
        for listener in self._listeners:
            listener()

    def after_commit(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after every commit, on the committing thread: it must only wake somebody."""
        self._listeners.append(listener)

    def migrate(self) -> None:
        """Bring the tables to this version's form: all of it, and the note that it was done, in one transaction."""
        configuration = Config()
        configuration.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.write() as connection:
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")

    def close(self) -> None:
        self.engine.dispose()


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def parse_url(url: str) -> URL:
    """A database URL as people give it. Raises Malformed for what we do not support."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Malformed(
            f"{url!r} is no database URL",
            field="--database",
            next_step="write it like postgresql+psycopg://user@host/database",
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql") or (
        parsed.get_backend_name() == "sqlite" and not parsed.database
    ):
        raise Malformed(
            f"{parsed.drivername} is not supported",
            field="--database",
            next_step="use sqlite:///FILE or postgresql+psycopg://user@host/database",
        )
    return parsed


def _engine(url: URL) -> Engine:
    patience = {"connect_timeout": CONNECT_S, "tcp_user_timeout": SILENCE_S * 1000}
    told = {name: value for name, value in patience.items() if name not in url.query}
    arguments = told if url.get_backend_name() == "postgresql" else {}
    engine = create_engine(url, pool_size=CONNECTIONS_MAX, max_overflow=0, connect_args=arguments)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(raw: Any, _: object) -> None:
    """Our transactions begin when we say so, and a commit survives a power cut."""
    raw.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "foreign_keys = ON",
        "synchronous = FULL",
    ):
        raw.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
