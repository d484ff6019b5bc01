"""How large a request's body may be, by its address: known before a byte of it is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from sqlalchemy.exc import DBAPIError

from holdfast_shared.identifiers import DIGEST_PATTERN
from holdfast_shared.wire import command, membership, release

BASE: Final = "/api/v1"
_BLOB: Final = f"{BASE}/blobs/"
_DOCUMENTS: Final = {
    f"{BASE}/memberships": membership.ENVELOPE_BYTES_MAX,
    f"{BASE}/models": release.ENVELOPE_BYTES_MAX,
    f"{BASE}/releases": release.ENVELOPE_BYTES_MAX,
    f"{BASE}/environments": release.ENVELOPE_BYTES_MAX,
    f"{BASE}/commands": command.ENVELOPE_BYTES_MAX,
}


class BodyLimits:
    """`expected_size`: of a blob's digest, how many bytes a signed manifest asked for; None: nobody did."""

    def __init__(self, expected_size: Callable[[str], int | None]) -> None:
        self._expected_size = expected_size

    def of(self, method: str, path: str) -> int:
        if method == "POST":
            return _DOCUMENTS.get(path, 0)
        if method == "PUT" and path.startswith(_BLOB):
            return self._blob(path.removeprefix(_BLOB))
        return 0

    def _blob(self, digest: str) -> int:
        if not re.fullmatch(DIGEST_PATTERN, digest):
            return 0
        try:
            return self._expected_size(digest) or 0
        except DBAPIError:
            return 0  # the database is away: the view says so
