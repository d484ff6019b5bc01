"""What a worker writes to stdout and stderr, line by line into the gateway's log: bounded in length and in rate."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 1024
# A model that complains at every request must not fill the journal of a small disk.
LINES_BURST: Final = 100
LINES_PER_S: Final = 10.0


class WorkerOutput(asyncio.Protocol):
    """The reading end of one worker's pipe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._allowance = float(LINES_BURST)
        self._filled_at = time.monotonic()
        self._dropped = 0
        self.closed = False

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > LINE_BYTES_MAX:
            lines.append(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._rest = rest
        for line in lines:
            self._say(line)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.closed = True
        if self._rest:
            self._say(self._rest)
        if self._dropped:
            log.warning("%s: %d more line(s) were dropped", self._name, self._dropped)

    def _say(self, line: bytes) -> None:
        now = time.monotonic()
        self._allowance = min(LINES_BURST, self._allowance + (now - self._filled_at) * LINES_PER_S)
        self._filled_at = now
        if self._allowance < 1:
            self._dropped += 1
            return
        self._allowance -= 1
        if self._dropped:
            log.warning("%s: %d line(s) were dropped", self._name, self._dropped)
            self._dropped = 0
        log.info("%s: %s", self._name, line[:LINE_BYTES_MAX].decode("utf-8", "backslashreplace").rstrip())
