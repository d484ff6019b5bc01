"""Assignments over HTTP, for when the broker is away, or lies: asked for with jitter, always, even while MQTT is connected.

What is listed is `{"pipelines": {"<pipeline>": "<payload digest>"}}` under an ETag; only what changed is fetched, as the same
bytes that MQTT carries. Whether they count is decided by who gets them: here they are bytes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

from holdfast_agent.edge import request
from holdfast_shared import strict_json
from holdfast_shared.errors import HoldfastError, Malformed
from holdfast_shared.identifiers import DigestField, NameField
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX

REQUEST_S: Final = 20.0
LISTING_BYTES_MAX: Final = 64 * 1024
# More pipelines than a small device can hold slots for.
PIPELINES_MAX: Final = 256
FIRST_S: Final = 2.0
RETRY_FIRST_S: Final = 5.0
# However often it is poked.
GAP_S: Final = 1.0
STOP_S: Final = 2.0
_OK, _NOT_MODIFIED, _NOT_FOUND = 200, 304, 404

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Polled:
    """A document of one scope (`scope_kind` is region or device), unjudged."""

    scope_kind: str
    name: str
    pipeline: str
    envelope: bytes


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    pipelines: Annotated[dict[NameField, DigestField], msgspec.Meta(max_length=PIPELINES_MAX)]


@dataclass(slots=True)
class _Scope:
    """What we know of one scope: the listing's ETag, and by pipeline the digest we handed on."""

    kind: str
    name: str
    etag: str = ""
    known: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/api/v1/assignments/{self.kind}/{self.name}"


class _Refused(HoldfastError):
    """The server answered, and not with what we asked for. `retry_after_s` as it said."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AssignmentPoll:
    """A thread of its own. `emit` is called on it, and must not wait."""

    def __init__(self, *, url: str, region: str, device: str, poll_s: float, emit: Callable[[Polled], None]) -> None:
        self._url, self._poll_s, self._emit = url, poll_s, emit
        self._scopes = (_Scope("region", region), _Scope("device", device))
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"poll-{device}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, within STOP_S; a request under way is left to its own deadline."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def poke(self) -> None:
        """Ask now, from any thread."""
        self._wake.set()

    def _run(self) -> None:
        wait_s = random.uniform(0, min(FIRST_S, self._poll_s))  # noqa: S311 - spreads devices; nobody gains by guessing it
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            began = time.monotonic()
            wait_s = self._round()
            self._stopping.wait(max(0.0, began + GAP_S - time.monotonic()))

    def _round(self) -> float:
        """Ask for both scopes; the seconds until the next round."""
        try:
            for scope in self._scopes:
                self._ask(scope)
        except HoldfastError as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("assignments cannot be polled: %s", error)
            limit = min(self._poll_s, RETRY_FIRST_S * 2.0 ** min(self._failures - 1, 10))
            retry_after_s = error.retry_after_s if isinstance(error, _Refused) else None
            return max(retry_after_s or 0.0, random.uniform(0, limit))  # noqa: S311 - full jitter, as above
        except Exception:  # a listener's fault must not end polling for good
            log.exception("a polled assignment was passed over")
        if self._failures:
            log.info("assignments can be polled again")
        self._failures = 0
        return self._poll_s * random.uniform(0.5, 1.5)  # noqa: S311 - as above

    def _ask(self, scope: _Scope) -> None:
        headers = {"If-None-Match": scope.etag} if scope.etag else {}
        with request.get(self._url, scope.path, deadline_s=REQUEST_S, headers=headers) as answer:
            if answer.status == _NOT_MODIFIED:
                return
            if answer.status == _NOT_FOUND:  # nothing is assigned there yet
                return
            if answer.status != _OK:
                raise _Refused(f"{self._url}{scope.path} answered {answer.status}", answer.retry_after_s)
            etag = answer.header("ETag")[:256]
            raw = answer.body(LISTING_BYTES_MAX)
        listing = strict_json.decode(
            raw, Listing, what="the list of assignments", size_bytes_max=LISTING_BYTES_MAX
        ).pipelines
        for pipeline, digest in listing.items():
            if scope.known.get(pipeline) != digest:
                self._fetch(scope, pipeline)
                scope.known[pipeline] = digest
        scope.known = {pipeline: scope.known[pipeline] for pipeline in listing}
        scope.etag = etag

    def _fetch(self, scope: _Scope, pipeline: str) -> None:
        path = f"{scope.path}/{pipeline}"
        with request.get(self._url, path, deadline_s=REQUEST_S) as answer:
            if answer.status != _OK:
                raise _Refused(f"{self._url}{path} answered {answer.status}", answer.retry_after_s)
            envelope = answer.body(ENVELOPE_BYTES_MAX)
        if not envelope:
            raise Malformed(f"{self._url}{path} answered nothing", next_step="look at what answers there")
        self._emit(Polled(scope.kind, scope.name, pipeline, envelope))
