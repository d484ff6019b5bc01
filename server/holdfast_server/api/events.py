"""What changed, as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): names of topics, nothing
else; who wants to know more asks. Each stream holds a thread of the web server, so there are few.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from flask import Response
from sqlalchemy.exc import DBAPIError

from holdfast_server.refusals import Limited
from holdfast_server.store.changes import Watch

# A third of the web server's threads; a page that gets none asks every few seconds instead.
STREAMS_MAX: Final = 10
# A fleet reports all the time: an open page is told at most so often.
GAP_S: Final = 0.25
# For commits of other processes, and to see that the page was closed.
LOOK_S: Final = 1.0
HEARTBEAT_S: Final = 15.0
RETRY_MS: Final = 2_000


class Streams:
    """Ends all of them once `stopping` is set."""

    def __init__(self, watch: Watch, stopping: threading.Event) -> None:
        self._watch = watch
        self._stopping = stopping
        self._places = threading.BoundedSemaphore(STREAMS_MAX)

    def open(self, gone: Callable[[], bool]) -> Response:
        """A stream until `gone` says that its reader left. Raises Limited."""
        if not self._places.acquire(blocking=False):
            raise Limited(
                f"{STREAMS_MAX} pages are live already",
                next_step="ask every few seconds instead, and for a stream again later",
            )
        response = Response(self._events(gone), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(_once(self._places.release))
        return response

    def _events(self, gone: Callable[[], bool]) -> Iterator[str]:
        try:
            generation, seen = self._watch.generation, self._watch.counters()
            yield f"retry: {RETRY_MS}\n: here\n\n"
            spoke = time.monotonic()
            while not self._stopping.wait(GAP_S) and not gone():
                self._watch.wait(LOOK_S, since=generation)
                generation, counters = self._watch.generation, self._watch.counters()
                topics = sorted(topic for topic, counter in counters.items() if counter != seen.get(topic))
                seen = counters
                if topics:
                    yield f"event: change\ndata: {msgspec.json.encode({'topics': topics}).decode()}\n\n"
                elif time.monotonic() - spoke < HEARTBEAT_S:
                    continue
                else:
                    yield ": still here\n\n"
                spoke = time.monotonic()
        except DBAPIError:
            return  # the database is away; the page asks for a new stream


def _once(action: Callable[[], None]) -> Callable[[], None]:
    lock = threading.Lock()

    def call() -> None:
        if lock.acquire(blocking=False):
            action()

    return call
