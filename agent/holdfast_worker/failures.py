"""What can go wrong in a worker, by who must act: the device or the publisher at load, the application, the model."""

from __future__ import annotations

from typing import Literal

# The codes of `protocol.Failed`. `damaged-blob` is mended by fetching again, `unreadable` by a better moment or a better disk.
LoadCode = Literal["damaged-blob", "unreadable", "load-failed", "self-test-failed", "not-supported"]


class LoadRefused(Exception):
    """The release cannot serve on this device: a stable code, and what was expected and found."""

    def __init__(self, code: LoadCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: LoadCode = code
        self.detail = detail


class InputFault(Exception):
    """The request's own fault: no other slot would answer it either."""


class ModelRaised(Exception):
    """The model could not compute an answer, or answered in another form than its manifest declares."""
