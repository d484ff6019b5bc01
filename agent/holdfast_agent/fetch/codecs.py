"""How a blob's bytes may travel other than as they are. Each codec makes the blob of what came, and is trusted with nothing.

What a codec gives is counted and hashed by whoever asked; here are only the limits on its memory. A difference against a blob
that is here already would be one more codec, made with that blob.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final, Protocol

import zstandard

from holdfast_shared.wire.transfers import WINDOW_LOG_MAX

READ_BYTES: Final = 128 * 1024


class Undecodable(Exception):
    """What came is nothing of this codec's."""


class Codec(Protocol):
    """One way to travel."""

    def decoded(self, transfer: BinaryIO, piece_bytes: int) -> Iterator[bytes]:
        """The blob in pieces of at most `piece_bytes`, in bounded memory however much comes. May be repeated.

        May end early on bytes that break off, and go on for ever on hostile ones: count. Raises Undecodable, or OSError.
        """


class Zstandard:
    def decoded(self, transfer: BinaryIO, piece_bytes: int) -> Iterator[bytes]:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
        try:
            with decompressor.stream_reader(transfer, read_size=READ_BYTES, closefd=False) as reader:
                while piece := reader.read(piece_bytes):
                    yield piece
        except (zstandard.ZstdError, MemoryError) as error:
            raise Undecodable(str(error)) from error


# By the name that an index gives them. What is not here is passed over.
CODECS: Final[Mapping[str, Codec]] = {"zstd": Zstandard()}
