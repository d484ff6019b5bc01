"""The running server: what it needs to start, what it starts, and how it ends. Everything it keeps is in its data folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy.exc import DBAPIError

from holdfast_server import application, logs
from holdfast_server.api.body_limits import BodyLimits
from holdfast_server.broker.session import BrokerSession
from holdfast_server.context import Context
from holdfast_server.core.segments import Match
from holdfast_server.registry.blobs import FolderBlobs
from holdfast_server.registry.registry import Registry
from holdfast_server.registry.transfers import TransferBuilder
from holdfast_server.rollouts.scheduler import Scheduler
from holdfast_server.serving import Address, WebServer
from holdfast_server.store.database import Database, parse_url, sqlite_url
from holdfast_server.store.outbox import Director
from holdfast_shared import __version__, durable, selector
from holdfast_shared import authorities as trust
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import Conflict, Malformed, Missing, Untrusted
from holdfast_shared.key_file import read_key
from holdfast_shared.signing import PrivateKey, PublicKey

# Each part has its own deadline; this is for the scheduler's last look, or the last piece of a blob.
STOP_S: Final = 5.0
ADDRESS_FILE: Final = "server.json"

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As given on the command line. `database` None: SQLite in the data folder. `shadow_first`: a selector; None: nowhere."""

    data: Path
    authorities: Path
    director_key: Path
    listen: str
    mqtt: str
    database: str | None = None
    shadow_first: str | None = None


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT. Raises HoldfastError when it must not start: then nothing was changed."""
    logs.to_standard_error()
    known = trust.load(options.authorities)
    director = director_of(known, read_key(options.director_key, option="--director-key"))
    address = Address.parse(options.listen)
    shadow_first = _policy(options.shadow_first)
    url = parse_url(options.database) if options.database is not None else sqlite_url(options.data / "server.db")
    stop = threading.Event()
    with _alone(options.data):
        durable.remove(options.data / ADDRESS_FILE)
        database = Database(url)
        try:
            _migrate(database)
            context = _context(database, known, director, options.data, shadow_first)
            _serve(context, options, address, stop)
        finally:
            durable.remove(options.data / ADDRESS_FILE)
            database.close()
    log.info("stopped")


def director_of(known: Authorities, key: PrivateKey) -> Director:
    """The director that this key is, in its highest epoch. Raises Untrusted when it is none."""
    mine = [one.epoch for one in known.directors if PublicKey.from_text(one.public_key).key_id == key.public.key_id]
    if not mine:
        raise Untrusted(
            f"authorities.json lists no director with the public key {key.public.to_text()}",
            field="--director-key",
            next_step="use a director's key, or provision an authorities.json that lists this one under `directors`",
        )
    return Director(known.fleet, key, max(mine))


def _policy(written: str | None) -> Match | None:
    try:
        return selector.parse(written) if written is not None else None
    except Malformed as error:
        raise Malformed(error.message, field="--shadow-first", next_step=error.next_step) from error


def _context(
    database: Database, known: Authorities, director: Director, data: Path, shadow_first: Match | None
) -> Context:
    registry = Registry(database=database, authorities=known, blobs=FolderBlobs(data / "blobs"))
    registry.sweep()
    # Large uploads are gathered on the disk that they will stay on, not in a small /tmp.
    tempfile.tempdir = str(data / "blobs" / "partial")
    return Context(
        database=database, authorities=known, director=director, registry=registry, shadow_first=shadow_first
    )


def _migrate(database: Database) -> None:
    try:
        database.migrate()
    except DBAPIError as error:
        raise Missing(
            f"the database cannot be used: {str(error.orig).splitlines()[0] if error.orig else error}",
            field="--database",
            next_step="check that it runs and that its user may create tables",
        ) from error


def _serve(context: Context, options: Options, address: Address, stop: threading.Event) -> None:
    session = BrokerSession(context, options.mqtt)
    app = application.create(context, lambda: session.connected, tally=session.intake.tally, stopping=stop)
    server = WebServer(app, address, BodyLimits(context.registry.expected_size).of)
    scheduler = Scheduler(context)
    builder = TransferBuilder(context.database, context.registry.blobs)
    driving = [
        threading.Thread(target=work, args=(stop,), name=name, daemon=True)
        for name, work in (("scheduler", scheduler.run), ("transfers", builder.run))
    ]

    def end(*_: object) -> None:  # in the middle of anything: it only says so
        stop.set()
        scheduler.wake()
        server.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for thread in driving:
        thread.start()
    session.start()
    try:
        told = msgspec.json.encode({"http": server.address.url, "pid": os.getpid()})
        durable.write_file(options.data / ADDRESS_FILE, told)
        log.info("holdfast-server %s serves the fleet %s on %s", __version__, context.fleet, server.address.url)
        server.serve(stop)
        log.info("told to stop: the web server has ended")
    finally:
        stop.set()
        scheduler.wake()
        for thread in driving:
            thread.join(STOP_S)
        session.stop()


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the data folder: two servers on one would each decide everything. Raises Conflict, or Missing without a folder."""
    try:
        durable.make_folder(data, mode=0o750)
        descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Missing(
            f"cannot use the folder {data}: {error.strerror}",
            field="--data",
            next_step="name one that you may write to",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another server works on {data}", field="--data", next_step="stop it, or name another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
