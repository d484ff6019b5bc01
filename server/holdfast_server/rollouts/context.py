"""What this package needs of the server around it: a part of `holdfast_server.context.Context`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from holdfast_server.core.rollout import Moment
from holdfast_server.core.segments import Match
from holdfast_server.store.database import Database
from holdfast_server.store.outbox import Director
from holdfast_shared.authorities import Authorities


class Context(Protocol):
    """Safe to share between threads."""

    @property
    def database(self) -> Database: ...

    @property
    def authorities(self) -> Authorities: ...

    @property
    def director(self) -> Director: ...

    @property
    def shadow_first(self) -> Match | None:
        """Where a release may serve only after it has shadowed; None: nowhere."""

    @property
    def now(self) -> Callable[[], Moment]:
        """The only clock."""
