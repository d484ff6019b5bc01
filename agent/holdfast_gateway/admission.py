"""How a new connection is met, and what all connections share."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from holdfast_gateway.http_message import Request

if TYPE_CHECKING:
    from holdfast_gateway.http_connection import Connection


class Admission(Enum):
    """How a new connection is met: served, told that there are too many, or, when even that is too much, ended."""

    WELCOME = auto()
    TOO_MANY = auto()
    FLOOD = auto()


class Service(Protocol):
    """What all connections share."""

    read_buffer: memoryview
    body_bytes_max: int
    stopping: bool
    now: float  # as of the last sweep: exact enough for deadlines of seconds, and free

    def connected(self, connection: Connection) -> Admission: ...

    def disconnected(self, connection: Connection) -> None: ...

    def hold(self, count: int) -> bool:
        """So many more bytes of bodies are held (fewer when negative); False, and none are, when that is too many."""

    def serve(self, request: Request, connection: Connection) -> None:
        """Answer it, now or later, by one call of `answer`."""
