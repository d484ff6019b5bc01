"""Requests that killed a worker in both slots: refused for a while, so that one application cannot keep both restarting.

What is remembered is a hash of what a request asks, without its id or anything else that a repetition may change. Nothing
is hashed while no worker was lost.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

import msgspec

from holdfast_gateway.inference import Inference
from holdfast_worker.protocol import NO_HEADER

# Long enough that its sender is noticed; short enough that a release which was only short of memory answers it again.
QUARANTINE_S: Final = 600.0
# More contents than this that each kill both slots are no poison any more: that is a bad release, or a bad device.
CONTENTS_MAX: Final = 64
_HASH_BYTES: Final = 16
T = TypeVar("T")


class _Asked(msgspec.Struct, frozen=True):
    inputs: msgspec.Raw


class Quarantine:
    """Of one pipeline. Times are of CLOCK_MONOTONIC."""

    __slots__ = ("_fatal", "_lost_at")

    def __init__(self) -> None:
        self._lost_at: dict[bytes, tuple[str, ...]] = {}  # content → the targets that lost a worker at it
        self._fatal: dict[bytes, float] = {}  # content → until when it is refused

    def lost_at(self, inference: Inference, target: str, now: float) -> None:
        """A worker of `target` was lost at it."""
        content = _content(inference)
        targets = tuple({*self._lost_at.pop(content, ()), target})
        if len(targets) > 1:
            _put(self._fatal, content, now + QUARANTINE_S)
        else:
            _put(self._lost_at, content, targets)

    def left_s(self, inference: Inference, now: float) -> float:
        """For how long it is refused still; 0 when it is not."""
        if not self._fatal:
            return 0.0
        content = _content(inference)
        left_s = self._fatal.get(content, now) - now
        if left_s <= 0:
            self._fatal.pop(content, None)
        return max(0.0, left_s)

    def clear(self) -> None:
        """Other releases serve now, and may answer all of it."""
        self._lost_at.clear()
        self._fatal.clear()


def _put(where: dict[bytes, T], content: bytes, what: T) -> None:
    where.pop(content, None)
    where[content] = what
    if len(where) > CONTENTS_MAX:
        del where[next(iter(where))]


def _content(inference: Inference) -> bytes:
    body = inference.body
    length = len(body) if inference.header_length == NO_HEADER else inference.header_length
    try:
        asked = bytes(msgspec.json.decode(body[:length], type=_Asked).inputs)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = bytes(body[:length])
    found = hashlib.blake2b(asked, digest_size=_HASH_BYTES)
    found.update(memoryview(body)[length:])
    return found.digest()
