"""The way to the server, and what holds a fetch back on it: a cap on its speed, and a day's bytes on a metered network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from holdfast_agent.core.pace import SECOND_US, Pace
from holdfast_agent.edge import request
from holdfast_agent.edge.request import Answer
from holdfast_agent.fetch.outcome import Failed
from holdfast_shared.failure_codes import FailureCode

# What the kernel may take in ahead of us when we read slowly on purpose: it crosses the wire uncounted.
RECEIVE_BUFFER_BYTES: Final = 64 * 1024


class Restraint(Protocol):
    """Something that holds a fetch back. Both may raise Failed, and then nothing more is asked for."""

    def begin(self) -> None:
        """Before a request."""

    def passed(self, size_bytes: int) -> None:
        """After so many bytes of a body came. May wait."""


class Line(NamedTuple):
    """Requests to one server."""

    url: str
    restraints: Sequence[Restraint] = ()

    def get(
        self, path: str, *, deadline_s: float, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Answer]:
        """As `request.get`, restrained."""
        for restraint in self.restraints:
            restraint.begin()
        buffer = RECEIVE_BUFFER_BYTES if self.restraints else None
        return request.get(
            self.url, path, deadline_s=deadline_s, headers=headers, passed=self._passed, receive_buffer_bytes=buffer
        )

    def _passed(self, size_bytes: int) -> None:
        for restraint in self.restraints:
            restraint.passed(size_bytes)


class Closed:
    """No request at all: the download window is closed, and only what is on this disk counts."""

    def begin(self) -> None:
        raise outside_window("a manifest")

    def passed(self, size_bytes: int) -> None:
        """Nothing comes."""


def outside_window(what: str) -> Failed:
    return Failed(FailureCode.OUTSIDE_WINDOW, f"{what} is not on this disk, and the download window is closed")


class Cap:
    """No more than so many bytes a second, on average, over all requests of this fetch."""

    def __init__(self, bytes_per_s: int) -> None:
        self._pace = Pace(bytes_per_s)

    def begin(self) -> None:
        """A request may always be made: it is small."""

    def passed(self, size_bytes: int) -> None:
        now_us = time.monotonic_ns() // 1_000
        self._pace = self._pace.after(size_bytes, now_us)
        time.sleep(self._pace.wait_us(now_us) / SECOND_US)  # the cap itself; 16 s at most, for one piece at its lowest
