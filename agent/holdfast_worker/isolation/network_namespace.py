"""No network by a namespace that has no interface: for machines that have no system call filter for us."""

from __future__ import annotations

import os
from typing import Final

from holdfast_worker.isolation import libc

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000


def leave_the_network() -> None:
    """Raises OSError where namespaces are refused. Without privileges it takes a user namespace, so the only thread."""
    libc.unshare(_CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET)
