"""Compressed forms of blobs: made once, in the background, kept under their own digest, and told in an unsigned index.

Derived, so nothing depends on it: a blob without one travels as it is. A form is kept only where it saves something, and that
it was tried is remembered either way.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

import zstandard
from sqlalchemy import Connection, and_, select

from holdfast_server.registry.blobs import BlobStore
from holdfast_server.store import changes
from holdfast_server.store.database import UNAVAILABLE, Database
from holdfast_server.store.schema import release_blobs, transfers
from holdfast_server.store.upsert import insert_into
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.identifiers import hex_of
from holdfast_shared.wire.transfers import BLOB_BYTES_MIN, TRANSFERS_MAX, WINDOW_LOG_MAX, Transfer, Transfers

CODEC: Final = "zstd"
# 2.5 MB a second at this level: half a minute for the largest that gets it. Above, ten times as quick and a little longer.
LEVEL: Final = 19
LEVEL_OF_LARGE: Final = 9
LARGE_BYTES: Final = 64 * 1024**2
# What saves less is not worth a second copy on our disk and a second one on the device's while it decodes.
SAVED_SHARE_MIN: Final = 0.05
# What a quick look at a few places cannot shorten at all is random: it is not tried.
LOOK_BYTES: Final = 256 * 1024
LOOKS: Final = 4
LOOK_LEVEL: Final = 3
PIECE_BYTES: Final = 1024**2
AT_ONCE_MAX: Final = 64
TICK_S: Final = 1.0
AFTER_FAULT_S: Final = 30.0
NICENESS: Final = 10

log: Final = logging.getLogger(__name__)


class Pending(NamedTuple):
    digest: str
    size_bytes: int


def index_of(connection: Connection, blobs: BlobStore, digest: str) -> Transfers:
    """Its shorter forms whose bytes are here."""
    rows = connection.execute(
        select(transfers.c.codec, transfers.c.digest, transfers.c.size_bytes)
        .where(
            transfers.c.blob_digest == digest,
            transfers.c.digest.is_not(None),
        )
        .order_by(transfers.c.size_bytes)
        .limit(TRANSFERS_MAX)
    )
    found = tuple(
        Transfer(codec=row.codec, digest=row.digest, size_bytes=row.size_bytes) for row in rows if blobs.has(row.digest)
    )
    return Transfers(blob=digest, transfers=found)


class TransferBuilder:
    """Makes what is missing for every registered release. One a server; a second one would do the same work again."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, which is seen between two pieces of a blob. Looks when something was published."""
        os.setpriority(
            os.PRIO_PROCESS, threading.get_native_id(), NICENESS
        )  # of this thread: the web server goes first
        seen = -1
        while not stop.wait(TICK_S):
            try:
                with self._database.read() as connection:
                    published = changes.counters(connection).get("releases", 0)
                if published != seen:
                    self.build_missing(stop)
                    seen = published
            except UNAVAILABLE as error:
                log.warning("the database is away; blobs are compressed when it is back: %.300s", error)
                stop.wait(AFTER_FAULT_S)
            except Exception:  # a full disk: nothing depends on it, and it is tried again
                log.exception("compressing blobs failed")
                stop.wait(AFTER_FAULT_S)

    def build_missing(self, stop: threading.Event | None = None) -> int:
        """Make what is missing now; how many blobs were looked at. May be repeated."""
        done = 0
        while True:  # ends: each that was looked at is remembered
            with self._database.read() as connection:
                waiting = _pending(connection)
            for one in waiting:
                if stop is not None and stop.is_set():
                    return done
                self._build(one, stop or threading.Event())
                done += 1
            if len(waiting) < AT_ONCE_MAX:
                return done

    def _build(self, pending: Pending, stop: threading.Event) -> None:
        try:
            made = self._made(pending, stop)
        except _Stopped:
            return
        except (Missing, Malformed, FileNotFoundError) as error:  # the blob is gone or rots; a full disk is tried again
            log.warning("blob %s is not compressed: %s", pending.digest, error)
            made = None
        values = {"digest": made.digest if made else None, "size_bytes": made.size_bytes if made else 0}
        with self._database.write() as connection:
            connection.execute(
                insert_into(connection, transfers)
                .values(blob_digest=pending.digest, codec=CODEC, **values)
                .on_conflict_do_nothing()
            )
        if made is not None:
            log.info("blob %s travels as %d of %d bytes", pending.digest, made.size_bytes, pending.size_bytes)

    def _made(self, pending: Pending, stop: threading.Event) -> Pending | None:
        """The form, kept; None when it saves too little. Compressed twice: the store wants its digest before its bytes."""
        if not _can_be_shorter(self._blobs, pending):
            return None
        hasher, size = hashlib.sha256(), 0
        for piece in _compressed(self._blobs, pending, stop):
            hasher.update(piece)
            size += len(piece)
        if size > pending.size_bytes * (1 - SAVED_SHARE_MIN):
            return None
        made = Pending(f"sha256:{hasher.hexdigest()}", size)
        if not self._blobs.has(made.digest):
            received = self._blobs.receive(made.digest, size, _compressed(self._blobs, pending, stop))
            self._blobs.keep(received, made.digest)
        return made


class _Stopped(Exception):
    """The server ends."""


def _pending(connection: Connection) -> list[Pending]:
    """Blobs of registered releases that nobody looked at yet."""
    rows = connection.execute(
        select(release_blobs.c.blob_digest, release_blobs.c.size_bytes)
        .distinct()
        .join(
            transfers,
            and_(transfers.c.blob_digest == release_blobs.c.blob_digest, transfers.c.codec == CODEC),
            isouter=True,
        )
        .where(
            transfers.c.blob_digest.is_(None),
            release_blobs.c.size_bytes >= BLOB_BYTES_MIN,
        )
        .order_by(release_blobs.c.size_bytes)
        .limit(AT_ONCE_MAX)
    )
    return [Pending(row.blob_digest, row.size_bytes) for row in rows]


def _can_be_shorter(blobs: BlobStore, pending: Pending) -> bool:
    compressor = zstandard.ZstdCompressor(level=LOOK_LEVEL)
    looked = shortened = 0
    with blobs.open(pending.digest) as stream:
        for place in range(LOOKS):
            stream.seek(pending.size_bytes * place // LOOKS)
            piece = stream.read(LOOK_BYTES)
            looked += len(piece)
            shortened += len(compressor.compress(piece))
    return shortened < looked


def _compressed(blobs: BlobStore, pending: Pending, stop: threading.Event) -> Iterator[bytes]:
    """The same bytes each time. Raises _Stopped, or Malformed for a blob that rotted."""
    level = LEVEL if pending.size_bytes <= LARGE_BYTES else LEVEL_OF_LARGE
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=pending.size_bytes)
    if parameters.window_log > WINDOW_LOG_MAX:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=pending.size_bytes, window_log=WINDOW_LOG_MAX
        )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=pending.size_bytes)
    hasher = hashlib.sha256()
    with blobs.open(pending.digest) as stream:
        while piece := stream.read(PIECE_BYTES):
            if stop.is_set():
                raise _Stopped
            hasher.update(piece)
            if made := compressor.compress(piece):
                yield made
    if hasher.hexdigest() != hex_of(pending.digest):
        raise Malformed("its bytes have another hash", field="digest", next_step="publish what names it again")
    yield compressor.flush()
