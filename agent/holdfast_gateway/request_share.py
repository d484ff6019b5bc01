"""A share of a pipeline's requests for the release on trial: which slot one request is asked at first.

- One session has one bucket, salted with the release's digest: always the same slot, also after a restart, on every device, and
  still the candidate's when the share grows. Without the parameter `session` the request's `id` is taken for it.
- With neither, requests walk over all buckets in even steps: of any 10,000 in a row exactly the share go to the candidate.
- A segment is asked of the request's own parameters, as far as they are texts.
- Nothing here refuses a request. What cannot be read belongs to nobody, and the worker says what is wrong with it.

Made only while a share is in force; a request without one is not read here.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from holdfast_gateway.control import Route
from holdfast_gateway.inference import Inference
from holdfast_gateway.slot import Slot
from holdfast_shared import cohort, selector
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Requests
from holdfast_worker.protocol import NO_HEADER

# Reading so much takes 6 ms, in which nobody else is served. Who sends larger tensors as JSON has no sessions; the protocol's
# binary extension keeps `id` and `parameters` in a small header of their own.
READ_BYTES_MAX: Final = 4 * 1024**2
# Near the golden section of the buckets, and without a common divisor with them: the walk meets each bucket once, no two
# neighbours in a row, and in step with no application that asks in turns.
_STRIDE: Final = 6_181


class _Asked(msgspec.Struct, frozen=True):
    """Of an `infer` request, what says whose it is; all else is passed over."""

    id: str | int | float | None = None
    parameters: dict[str, object] | None = None


_asked: Final[msgspec.json.Decoder[_Asked]] = msgspec.json.Decoder(_Asked)
_NOBODY: Final = _Asked()


class RequestShare:
    """`candidate` gets `requests`, its refuge the others."""

    __slots__ = ("_walked", "candidate", "requests")

    def __init__(self, requests: Requests, candidate: Target) -> None:
        self.requests = requests
        self.candidate = candidate
        self._walked = secrets.randbelow(cohort.BUCKETS)  # a fleet's first requests are not all the candidate's

    @classmethod
    def of(cls, route: Route, before: RequestShare | None) -> RequestShare | None:
        """What the route says; None when every request goes to one slot. One that stays goes on where it was."""
        if route.requests is None or route.serving is None or route.refuge in (None, route.serving):
            return None
        if before is not None and (before.requests, before.candidate) == (route.requests, route.serving):
            return before
        return cls(route.requests, route.serving)

    def first(self, inference: Inference, usable: Sequence[Slot]) -> Slot:
        """Of the slots that can answer, the first choice for this request. A version that it names decides, if one has it."""
        if inference.version:
            usable = [slot for slot in usable if slot.version == inference.version] or usable
        if len(usable) == 1 or self.has(inference.body, inference.header_length) == (
            usable[0].target == self.candidate
        ):
            return usable[0]
        return usable[1]

    def has(self, body: bytes | bytearray, header_length: int) -> bool:
        """Whether this request is one of the candidate's."""
        asked = _read(body, header_length)
        if self.requests.segment and not selector.holds(self.requests.segment, _labels(asked)):
            return False
        return self._bucket(asked) < self.requests.share

    def _bucket(self, asked: _Asked) -> int:
        session = (asked.parameters or {}).get("session")
        whose = session if _names(session) else asked.id
        if not _names(whose):
            self._walked = (self._walked + _STRIDE) % cohort.BUCKETS
            return self._walked
        return cohort.bucket(self.candidate.release.digest, str(whose))


def _read(body: bytes | bytearray, header_length: int) -> _Asked:
    length = len(body) if header_length == NO_HEADER else header_length
    if length > READ_BYTES_MAX:
        return _NOBODY
    try:
        return _asked.decode(body if length == len(body) else memoryview(body)[:length])
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return _NOBODY


def _names(said: object) -> bool:
    """A text or a number that may stand for somebody. Python's `True` is a number, and JSON's is not."""
    return isinstance(said, str | int | float) and not isinstance(said, bool) and said != ""


def _labels(asked: _Asked) -> dict[str, str]:
    return {name: said for name, said in (asked.parameters or {}).items() if isinstance(said, str)}
