"""What every part of a running server is given: no globals, no singletons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast_server import clock
from holdfast_server.core.rollout import Moment
from holdfast_server.core.segments import Match
from holdfast_server.registry.registry import Registry
from holdfast_server.store.database import Database
from holdfast_server.store.outbox import Director
from holdfast_shared.authorities import Authorities


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Safe to share between threads. `now` is the only clock: tests give their own.

    `shadow_first`: where a release serves only after it has shadowed; None: nowhere.
    """

    database: Database
    authorities: Authorities
    director: Director
    registry: Registry
    now: Callable[[], Moment] = clock.moment
    shadow_first: Match | None = None

    @property
    def fleet(self) -> str:
        return self.authorities.fleet
