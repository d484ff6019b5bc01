"""Refusals that only a server gives, beside those in `holdfast_shared.errors`."""

from __future__ import annotations

from holdfast_shared.errors import HoldfastError


class TooLarge(HoldfastError):
    """A body over its limit. It was not read to its end."""

    code = "too-large"


class Limited(HoldfastError):
    """As many as we serve at once are being served. It may be repeated later."""

    code = "limit-reached"


class NoSpace(HoldfastError):
    """The server's disk is full. Its operator must act."""

    code = "no-space"
