"""`holdfast.transfers/1`: the shorter ways in which a blob's bytes may travel.

Unsigned, and trusted only by the result: whatever it says, what comes out must have the length and hash that a signed manifest
names. A device that knows none of it, or is told nonsense, fetches the plain bytes.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from holdfast_shared.identifiers import DigestField, NameField
from holdfast_shared.wire.release import BLOB_BYTES_MAX

TYPE: Final = "holdfast.transfers/1"
SIZE_BYTES_MAX: Final = 16 * 1024
# Codecs, and later bases of differences.
TRANSFERS_MAX: Final = 16
# The window that a decoder must hold in memory, as a power of two: 8 MiB, on a device of 60.
WINDOW_LOG_MAX: Final = 23
# What is shorter fits into a packet or three whatever is done to it.
BLOB_BYTES_MIN: Final = 4 * 1024


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One way: the bytes to fetch by their own digest, and the codec that makes the blob of them."""

    codec: NameField
    digest: DigestField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=BLOB_BYTES_MAX)]


class Transfers(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """Of the blob with that digest. Empty: the plain bytes are the shortest."""

    blob: DigestField
    transfers: Annotated[tuple[Transfer, ...], msgspec.Meta(max_length=TRANSFERS_MAX)] = ()
