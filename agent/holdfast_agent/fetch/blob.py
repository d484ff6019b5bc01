"""One blob, or another form of one, from the server to disk: resumed where it broke off, never too long, verified as a whole.

A partial file is never trusted: a power cut, a changed file or a proxy may have spoilt it. What counts is the hash of all its
bytes at the end, and when a *resumed* one does not match, it is fetched once more from nothing before the server is blamed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from holdfast_agent.edge.request import Answer, TooSlow, Unreachable
from holdfast_agent.fetch.line import Line
from holdfast_agent.fetch.outcome import Failed
from holdfast_agent.fetch.patience import Deadline, Floor
from holdfast_shared import durable
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import hex_of

if TYPE_CHECKING:
    from hashlib import _Hash

# One fsync each; a kill loses no more than this.
PIECE_BYTES: Final = 1024**2
# A link that breaks goes on at once so often, as long as each answer brought something; then the agent's backoff takes over.
RESUMES_MAX: Final = 20
RESUME_PAUSE_S: Final = 0.2
_OK, _PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 200, 206, 416
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{1,200}"', re.ASCII)

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to ask the server for, by its hash: a blob, or another form of one. It grows in `partial` and ends as `whole`."""

    line: Line
    digest: str
    size_bytes: int
    partial: Path
    whole: Path

    @property
    def etag(self) -> Path:
        return etag_of(self.partial)


def etag_of(partial: Path) -> Path:
    """The ETag that the partial file's bytes came under."""
    return partial.with_name(f"{partial.name}.etag")


class _Spoilt(Exception):
    """These bytes are not the blob. `resumed`: it may be the older ones among them that are wrong."""

    def __init__(self, why: str, *, resumed: bool) -> None:
        super().__init__(why)
        self.resumed = resumed


def fetch(wanted: Wanted, deadline: Deadline) -> None:
    """Raises Failed, Unreachable, TooSlow or OSError; what came so far is then kept for the next time. May be repeated."""
    try:
        _complete(wanted, deadline)
    except _Spoilt as spoilt:
        if not spoilt.resumed:
            raise Failed(FailureCode.FETCH_DAMAGED, f"blob {wanted.digest}: {spoilt}") from spoilt
        log.warning("blob %s: %s; once more from nothing", wanted.digest, spoilt)
        try:
            _complete(wanted, deadline)
        except _Spoilt as again:
            raise Failed(FailureCode.FETCH_DAMAGED, f"blob {wanted.digest}: {again}") from again


def _complete(wanted: Wanted, deadline: Deadline) -> None:
    """Fetch what is missing of it, and give it its name. Raises _Spoilt, with the partial file gone."""
    hasher, have = _begun(wanted)
    resumed = have > 0
    for turn in range(RESUMES_MAX + 1):
        if have == wanted.size_bytes:
            break
        before = have
        try:
            have = _ask(wanted, hasher, have, deadline)
        except _Spoilt:
            _discard(wanted)
            raise
        if have == wanted.size_bytes:
            break
        if have == before or turn == RESUMES_MAX:
            raise Unreachable(f"blob {wanted.digest} broke off after {have} of {wanted.size_bytes} bytes")
        resumed = True
        time.sleep(min(RESUME_PAUSE_S, deadline.left_s()))  # a link that broke is given a moment
    if hasher.hexdigest() != hex_of(wanted.digest):
        _discard(wanted)
        raise _Spoilt("its bytes have another hash", resumed=resumed)
    durable.rename_into_place(wanted.partial, wanted.whole)
    durable.remove(wanted.etag)


def _begun(wanted: Wanted) -> tuple[_Hash, int]:
    """The hash and length of what is there already."""
    if _size(wanted.partial) > wanted.size_bytes:
        _discard(wanted)
    if not wanted.partial.exists():
        durable.append_and_sync(wanted.partial, b"")
    with wanted.partial.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256"), stream.tell()


def _ask(wanted: Wanted, hasher: _Hash, have: int, deadline: Deadline) -> int:
    """One request, its bytes on disk and hashed; the new length, also when the body broke off."""
    with wanted.line.get(
        f"/api/v1/blobs/{wanted.digest}", deadline_s=deadline.left_s(), headers=_headers(wanted, have)
    ) as answer:
        skipped, resumed = _checked(wanted, answer, have), have > 0
        for piece in _grouped(answer, wanted.size_bytes - have + skipped):
            new, skipped = piece[skipped:], max(0, skipped - len(piece))
            if have + len(new) > wanted.size_bytes:
                raise _Spoilt(f"the server sends more than {wanted.size_bytes} bytes", resumed=resumed)
            if new:
                durable.append_and_sync(wanted.partial, new)
                hasher.update(new)
                have += len(new)
    return have


def _headers(wanted: Wanted, have: int) -> dict[str, str]:
    if not have:
        return {}
    try:
        etag = wanted.etag.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        etag = ""
    return {"Range": f"bytes={have}-", **({"If-Range": etag} if _STRONG_ETAG.fullmatch(etag) else {})}


def _checked(wanted: Wanted, answer: Answer, have: int) -> int:
    """How many bytes at the start of this answer's body we have already. Raises _Spoilt or Failed for an answer of no use.

    A captive portal's page is refused by its length before it touches what came before.
    """
    etag = answer.header("ETag")
    known = _headers(wanted, have).get("If-Range", "")
    if answer.status == _OK:
        _check_length(wanted, answer, wanted.size_bytes)
        if known and etag and etag != known:
            raise _Spoilt(f"the server has another file now ({etag[:100]}, not {known[:100]})", resumed=True)
        if not have and _STRONG_ETAG.fullmatch(etag):
            durable.write_file(wanted.etag, etag.encode("ascii"))
        return have
    if answer.status == _PARTIAL_CONTENT and have:
        if known and etag and etag != known:
            raise _Spoilt(f"the server has another file now ({etag[:100]}, not {known[:100]})", resumed=True)
        found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        if (
            found is None
            or int(found[1]) != have
            or int(found[2]) >= wanted.size_bytes
            or found[3] not in ("*", str(wanted.size_bytes))
        ):
            sent = answer.header("Content-Range")[:100]
            raise _Spoilt(f"asked for bytes from {have}, the server sends {sent!r}", resumed=True)
        return 0
    if answer.status == _RANGE_NOT_SATISFIABLE and have:
        raise _Spoilt("the server's file is shorter", resumed=True)
    raise refused(answer, f"blob {wanted.digest}")


def refused(answer: Answer, what: str) -> Failed:
    """The error for an answer that is not the file."""
    where = f" to {answer.header('Location')[:200]!r}" if 300 <= answer.status < 400 else ""
    return Failed(
        FailureCode.FETCH_REFUSED,
        f"the server answered {answer.status}{where} for {what}",
        retry_after_s=answer.retry_after_s,
    )


def _check_length(wanted: Wanted, answer: Answer, expected: int) -> None:
    declared = answer.header("Content-Length")
    if declared and declared != str(expected):
        raise Failed(
            FailureCode.FETCH_DAMAGED,
            f"blob {wanted.digest} should have {expected} bytes, the server sends {declared[:20]} of type "
            f"{answer.header('Content-Type')[:100] or 'unknown'}: is that our server?",
        )


def _grouped(answer: Answer, expected: int) -> Iterator[bytes]:
    """The body in pieces of about PIECE_BYTES, one more byte than expected at most; what came before it broke off, too.

    The floor under the speed is counted here; past it, what came is kept first.
    """
    floor, waiting, passed = Floor(), bytearray(), 0
    try:
        for piece in answer.pieces():
            waiting += piece[: expected + 1 - passed - len(waiting)]
            floor.count(len(piece))
            if len(waiting) >= PIECE_BYTES or passed + len(waiting) > expected:
                passed += len(waiting)
                yield bytes(waiting)
                waiting.clear()
            if passed > expected:
                return
    except Unreachable as error:
        log.warning("%s", error)
    except (TooSlow, Failed):
        yield bytes(waiting)
        raise
    yield bytes(waiting)


def _discard(wanted: Wanted) -> None:
    durable.remove(wanted.partial)
    durable.remove(wanted.etag)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
