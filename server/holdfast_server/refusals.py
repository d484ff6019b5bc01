"""Refusals that only a server gives, beside those in `holdfast_shared.errors`."""

from __future__ import annotations

from typing import Final

from holdfast_shared.errors import HoldfastError


class TooLarge(HoldfastError):
    """A body over its limit. It was not read to its end."""

    code = "too-large"


class Limited(HoldfastError):
    """As many as we serve at once are being served. It may be repeated later."""

    code = "limit-reached"


class DatabaseAway(HoldfastError):
    """The database does not answer. Its operator must act; it may be repeated later."""

    code = "database-away"


class NoSpace(HoldfastError):
    """The server's disk is full. Its operator must act."""

    code = "no-space"


DATABASE_AWAY: Final = DatabaseAway(
    "the server's database does not answer, so what was asked may not have been done",
    next_step="look, and try again in a moment; if it stays so, see that the database runs: the server's log says more",
)
