"""The slots' bytes, read again in the background: a thread that stands behind everything else for the processor and reads slowly.

Pages that the kernel still has are let go of first: what is asked is what lies on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable, Collection
from typing import Final

from holdfast_agent.core.events import SlotsVerified
from holdfast_agent.edge import blobs
from holdfast_agent.edge.layout import StateFolder

# An old SD card reads twice as fast: nobody notices it, and a gigabyte is done in two minutes.
READ_BYTES_PER_S: Final = 8 * 1024**2
STOP_S: Final = 5.0
# A moment without a free descriptor or page passes; what refuses for longer is told.
TRIES: Final = 3
AGAIN_S: Final = 2.0
_LAST_IN_LINE: Final = 19  # nice(2), of this thread alone

log: Final = logging.getLogger(__name__)


class _Stopped(Exception):
    pass


class SlotVerifier:
    """One reading at a time. `emit` is called on its thread, once for each reading that was not stopped."""

    def __init__(
        self,
        folder: StateFolder,
        emit: Callable[[SlotsVerified], None],
        *,
        read_bytes_per_s: float = READ_BYTES_PER_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self._folder, self._emit, self._read_bytes_per_s, self._again_s = folder, emit, read_bytes_per_s, again_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, releases: Collection[str]) -> None:
        """Read all of these. One that is under way goes on, and its answer is the answer."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, args=(sorted(releases),), name="verifying", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the reading. A read that hangs on a dying disk is left to the process's end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(self, releases: list[str]) -> None:
        with contextlib.suppress(OSError):  # forbidden by a sandbox: then it is slow, and not last
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST_IN_LINE)
        damaged: set[str] = set()
        unreadable: dict[str, str] = {}
        try:
            for release in releases:
                try:
                    digests = self._damaged(release)
                except OSError as error:
                    log.error("release %s cannot be read: %s", release, error)  # noqa: TRY400 - the cause is the kernel's
                    unreadable[release] = error.strerror or str(error)
                else:
                    if digests:
                        log.error("release %s does not verify on this disk: %s", release, ", ".join(digests))
                        damaged.add(release)
        except _Stopped:
            return
        draw = random.random()  # noqa: S311 - spreads the next reading; nobody gains by guessing it
        whole = frozenset(releases) - damaged - unreadable.keys()
        self._emit(SlotsVerified(whole=whole, damaged=frozenset(damaged), draw=draw, unreadable=unreadable))

    def _damaged(self, release: str) -> list[str]:
        """Raises OSError when it cannot be read, TRIES times."""
        for attempt in range(1, TRIES + 1):
            try:
                return blobs.damaged(self._folder, release, read=self._pace)
            except OSError as error:
                if attempt == TRIES:
                    raise
                log.warning("release %s cannot be read (try %d of %d): %s", release, attempt, TRIES, error)
                if self._stopping.wait(self._again_s):
                    raise _Stopped from error
        raise AssertionError("it returns or raises")

    def _pace(self, size_bytes: int) -> None:
        if self._stopping.wait(size_bytes / self._read_bytes_per_s):
            raise _Stopped
