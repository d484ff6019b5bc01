"""The missing blobs of a target, each by the shortest way that this device knows: as it is, or as an unsigned index offers it.

Nothing of an index or a transfer is believed. What comes of it must have the length and the hash that a signed manifest names,
and is counted while it is made; what is bad costs one more download, of the plain bytes, and is not asked again in this fetch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import blob
from holdfast_agent.fetch.blob import Wanted
from holdfast_agent.fetch.codecs import CODECS, Undecodable
from holdfast_agent.fetch.line import Line
from holdfast_agent.fetch.outcome import Failed
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared import durable, strict_json
from holdfast_shared.errors import HoldfastError
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import hex_of
from holdfast_shared.wire.transfers import BLOB_BYTES_MIN, SIZE_BYTES_MAX, Transfer, Transfers

# An index is a courtesy: the plain bytes can be had without it.
INDEX_S: Final = 10.0
_OK: Final = 200

log: Final = logging.getLogger(__name__)


class Way(NamedTuple):
    """How one blob comes. `transfer` None: as it is. `there`: what of it is on disk already, by either way."""

    digest: str
    size_bytes: int
    there_bytes: int = 0
    transfer: Transfer | None = None
    transfer_there_bytes: int = 0

    @property
    def left_bytes(self) -> int:
        """What still has to come over the network."""
        if self.transfer is None:
            return self.size_bytes - self.there_bytes
        return self.transfer.size_bytes - self.transfer_there_bytes

    def as_it_is(self) -> Way:
        return self._replace(transfer=None)


class _Bad(Exception):
    """A transfer that is of no use."""


def ways(line: Line, folder: StateFolder, missing: Mapping[str, int], deadline: Deadline) -> list[Way]:
    """For each missing blob the way with the fewest bytes to go. Raises TooSlow at the deadline."""
    found = []
    for digest, size in missing.items():
        plain = Way(digest, size, min(size, _size(folder.partial_blob(digest))))
        offered = _offered(line, digest, deadline) if size >= BLOB_BYTES_MIN and plain.left_bytes else ()
        others = (_by(folder, plain, transfer) for transfer in offered)
        found.append(shortest(plain, others))
    return found


def shortest(plain: Way, others: Iterable[Way]) -> Way:
    """Of ways that this device knows and that end below the blob's own size; the plain one if none is shorter."""
    known = [
        way
        for way in others
        if way.transfer is not None and way.transfer.codec in CODECS and way.transfer.size_bytes < way.size_bytes
    ]
    return min([plain, *known], key=lambda way: way.left_bytes)


def room_needed(chosen: Sequence[Way]) -> int:
    """Bytes of disk until all of it is there: a transfer goes once its blob is made, so only the largest counts."""
    blobs = sum(way.size_bytes - way.there_bytes for way in chosen)
    return blobs + max((way.left_bytes for way in chosen if way.transfer is not None), default=0)


def fetch(line: Line, folder: StateFolder, way: Way, deadline: Deadline) -> None:
    """Raises what `blob.fetch` raises; what came so far is then kept for the next time. May be repeated."""
    if way.transfer is not None:
        try:
            _by_transfer(line, folder, way, way.transfer, deadline)
        except _Bad as bad:
            log.warning("blob %s does not come as %s: %s; as it is, then", way.digest, way.transfer.codec, bad)
        else:
            log.info("blob %s is here, %d bytes for %d", way.digest, way.transfer.size_bytes, way.size_bytes)
            return
    plain = Wanted(line, way.digest, way.size_bytes, folder.partial_blob(way.digest), folder.blob(way.digest))
    blob.fetch(plain, deadline)
    _discard_transfers(folder, way.digest)
    log.info("blob %s is here, %d bytes", way.digest, way.size_bytes)


def _offered(line: Line, digest: str, deadline: Deadline) -> tuple[Transfer, ...]:
    """What the server's index says; nothing when it has none, or it is no good."""
    try:
        with line.get(f"/api/v1/blobs/{digest}/transfers", deadline_s=min(INDEX_S, deadline.left_s())) as answer:
            if answer.status != _OK:
                return ()
            raw = answer.body(SIZE_BYTES_MAX)
        index = strict_json.decode(raw, Transfers, what="the index of transfers", size_bytes_max=SIZE_BYTES_MAX)
    except HoldfastError as error:
        log.warning("no index of transfers for blob %s: %s", digest, error)
        return ()
    return index.transfers if index.blob == digest else ()


def _by(folder: StateFolder, plain: Way, transfer: Transfer) -> Way:
    whole, partial = (
        folder.transfer(plain.digest, transfer.codec),
        folder.partial_transfer(plain.digest, transfer.codec),
    )
    there = max(_size(whole), _size(partial))
    return plain._replace(transfer=transfer, transfer_there_bytes=min(there, transfer.size_bytes))


def _by_transfer(line: Line, folder: StateFolder, way: Way, transfer: Transfer, deadline: Deadline) -> None:
    """Fetch what travels, and make the blob of it. Raises _Bad with all of it gone."""
    whole = folder.transfer(way.digest, transfer.codec)
    wanted = Wanted(
        line, transfer.digest, transfer.size_bytes, folder.partial_transfer(way.digest, transfer.codec), whole
    )
    try:
        if not whole.exists():
            blob.fetch(wanted, deadline)
        _decode(folder, way, whole, transfer.codec, deadline)
    except (Failed, Undecodable, _Bad) as error:
        if isinstance(error, Failed) and error.code == FailureCode.OVER_BUDGET:
            raise
        _discard_transfers(folder, way.digest)
        raise _Bad(str(error)) from error
    durable.remove(whole)


def _decode(folder: StateFolder, way: Way, whole: Path, codec: str, deadline: Deadline) -> None:
    """Never more than the blob's size is written, whatever comes out. Raises _Bad or Undecodable with the blob's part gone."""
    partial = folder.partial_blob(way.digest)
    _discard_plain(folder, way.digest)
    hasher, made = hashlib.sha256(), 0
    try:
        with whole.open("rb") as stream:
            for piece in CODECS[codec].decoded(stream, blob.PIECE_BYTES):
                deadline.left_s()
                made += len(piece)
                if made > way.size_bytes:
                    raise _Bad(f"more than {way.size_bytes} bytes come of it")
                durable.append_and_sync(partial, piece)
                hasher.update(piece)
        if made != way.size_bytes or hasher.hexdigest() != hex_of(way.digest):
            raise _Bad(f"{made} of {way.size_bytes} bytes come of it, or with another hash")
    except (_Bad, Undecodable):
        _discard_plain(folder, way.digest)
        raise
    durable.rename_into_place(partial, folder.blob(way.digest))


def _discard_plain(folder: StateFolder, digest: str) -> None:
    for path in (folder.partial_blob(digest), blob.etag_of(folder.partial_blob(digest))):
        durable.remove(path)


def _discard_transfers(folder: StateFolder, digest: str) -> None:
    for path in _left(folder, digest):
        durable.remove(path)


def _left(folder: StateFolder, digest: str) -> Iterator[Path]:
    for codec in CODECS:
        partial = folder.partial_transfer(digest, codec)
        yield from (partial, blob.etag_of(partial), folder.transfer(digest, codec))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
