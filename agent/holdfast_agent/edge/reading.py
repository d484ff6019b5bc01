"""Reading files: in pieces, slowly from the disk itself for whoever reads in the background; and what a refusal means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Final

# Nothing of that name is there. Any other refusal says nothing about the bytes.
MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Of a file that is read slowly.
PIECE_BYTES: Final = 256 * 1024


def hash_of(path: Path, *, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 in hex digits. `read` is called after each piece with its length; with it, the bytes come from the disk itself.

    Raises OSError.
    """
    with path.open("rb") as stream:
        return hash_of_stream(stream, read=read)


def hash_of_stream(stream: BufferedReader, *, read: Callable[[int], None] | None = None) -> str:
    """As `hash_of`, of an open file from its beginning."""
    if read is None:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # in pieces, not in memory
    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    hasher = hashlib.sha256()
    while piece := stream.read(PIECE_BYTES):
        hasher.update(piece)
        read(len(piece))
    return hasher.hexdigest()
