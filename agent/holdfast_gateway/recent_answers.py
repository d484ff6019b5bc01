"""What was predicted lately, by request id, until an application tells what would have been right. Of one pipeline.

In memory alone: what was answered before a restart of the gateway cannot be told any more, and is called unknown.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast_gateway.counts import Counts

# About 3 MB when all are held. A camera that asks once a second is remembered for the better part of three hours.
REMEMBERED_MAX: Final = 10_000
# A label that comes later belongs to no window that anybody still looks at.
AGE_MAX_S: Final = 86_400.0
# Ids are the application's. A longer one is answered, and not remembered.
ID_CHARACTERS_MAX: Final = 128


class Prediction(NamedTuple):
    """`classes` has one for each row of the request."""

    counts: Counts
    version: str
    classes: tuple[int, ...]
    at_s: float


class RecentAnswers:
    """Times are of CLOCK_MONOTONIC. The oldest is forgotten first. `unmatched` counts labels for which nothing waited."""

    __slots__ = ("_by_id", "unmatched")

    def __init__(self) -> None:
        self._by_id: dict[str, Prediction] = {}
        self.unmatched = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def remember(self, request: str, prediction: Prediction) -> None:
        """Of an id that comes again the newest answer counts."""
        if len(request) > ID_CHARACTERS_MAX:
            return
        self._by_id.pop(request, None)
        self._by_id[request] = prediction
        if len(self._by_id) > REMEMBERED_MAX:
            del self._by_id[next(iter(self._by_id))]

    def of(self, request: str, now: float) -> Prediction | None:
        """What was predicted, unless it is unknown, too old, or labelled already."""
        found = self._by_id.get(request)
        if found is not None and now - found.at_s > AGE_MAX_S:
            del self._by_id[request]
            return None
        return found

    def forget(self, request: str) -> None:
        """It is labelled now: a second label of the same answer must not count."""
        self._by_id.pop(request, None)
