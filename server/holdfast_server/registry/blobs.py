"""Where the files of models lie. A blob is named by the SHA-256 of its bytes; what has that name has those bytes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from holdfast_server.refusals import NoSpace
from holdfast_shared import durable
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.identifiers import Digest, hex_of

# A write and an fsync each: large enough to be quick, small enough that sixteen uploads fit in memory.
PIECE_BYTES: Final = 4 * 1024**2
_ENOSPC: Final = (28, 122)  # ENOSPC, EDQUOT


class BlobStore(Protocol):
    """Content-addressed and write-once. Every method may be repeated, and is safe from several threads."""

    def has(self, digest: str) -> bool: ...

    def receive(self, digest: str, size_bytes: int, pieces: Iterable[bytes]) -> Path:
        """Take in bytes under a temporary name and verify them; `keep` or `drop` what is returned.

        Raises Malformed when they are not exactly that blob, NoSpace when the disk is full; then nothing is left.
        """

    def keep(self, received: Path, digest: str) -> None:
        """Give received bytes their name, durably."""

    def drop(self, received: Path) -> None:
        """Forget received bytes."""

    def path_of(self, digest: str) -> Path:
        """A local file to read the blob from. Raises Missing."""

    def open(self, digest: str) -> BinaryIO:
        """The blob as a seekable stream. Raises Missing."""

    def digests(self) -> Iterator[Digest]: ...

    def remove(self, digest: str) -> None:
        """Delete what nothing names any more."""


class FolderBlobs:
    """A local folder: `sha256/<hex>`, and `partial/` for what is being received."""

    __slots__ = ("_partial", "_whole")

    def __init__(self, root: Path) -> None:
        self._whole = root / "sha256"
        self._partial = root / "partial"
        for folder in (self._whole, self._partial):
            durable.make_folder(folder)
        durable.sync_folder(self._whole)  # a server that was killed may have named a blob and not synced the name
        for leftover in self._partial.iterdir():
            durable.remove(leftover)

    def has(self, digest: str) -> bool:
        return self._file(digest).is_file()

    def receive(self, digest: str, size_bytes: int, pieces: Iterable[bytes]) -> Path:
        temporary = self._partial / f"{hex_of(digest)}-{secrets.token_hex(4)}"
        hasher, received = hashlib.sha256(), 0
        try:
            for piece in _grouped(pieces):
                received += len(piece)
                if received > size_bytes:
                    break
                hasher.update(piece)
                durable.append_and_sync(temporary, piece)
            _check(digest, size_bytes, received, "sha256:" + hasher.hexdigest())
        except OSError as error:
            durable.remove(temporary)
            if error.errno in _ENOSPC:
                raise NoSpace(
                    "the server's disk is full", next_step="free some space there, and send it again"
                ) from error
            raise
        except BaseException:
            durable.remove(temporary)
            raise
        return temporary

    def keep(self, received: Path, digest: str) -> None:
        durable.rename_into_place(received, self._file(digest))

    def drop(self, received: Path) -> None:
        durable.remove(received)

    def path_of(self, digest: str) -> Path:
        if not self.has(digest):
            raise Missing(f"no blob {digest}", field="digest", next_step="publish the release that names it")
        return self._file(digest)

    def open(self, digest: str) -> BinaryIO:
        return self.path_of(digest).open("rb")

    def digests(self) -> Iterator[Digest]:
        for file in sorted(self._whole.iterdir()):
            yield Digest(f"sha256:{file.name}")

    def remove(self, digest: str) -> None:
        durable.remove(self._file(digest))

    def _file(self, digest: str) -> Path:
        return self._whole / hex_of(digest)


def _grouped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about PIECE_BYTES: one fsync each."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _check(digest: str, size_bytes: int, received: int, found: str) -> None:
    if received != size_bytes:
        raise Malformed(
            f"expected {size_bytes} bytes, received {'more' if received > size_bytes else received}",
            field="size_bytes",
            next_step="send exactly the file that the manifest names",
        )
    if found != digest:
        raise Malformed(
            f"wrong hash: the bytes have {found}, not {digest}",
            field="digest",
            next_step="send exactly the file that the manifest names",
        )
