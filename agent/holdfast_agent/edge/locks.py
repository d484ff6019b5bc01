"""A file or folder that one process at a time may work with: flock, which ends with whoever holds it."""

from __future__ import annotations

import fcntl
import time
from typing import Final

# A process that is killed as it starts another leaves a child, which holds its locks and sockets until it has become that other.
LEFT_BEHIND_S: Final = 5.0
_POLL_S: Final = 0.05


def lock_within(descriptor: int, wait_s: float) -> bool:
    """Whether it is ours, at the latest after so long. Raises OSError where nothing can be locked."""
    deadline = time.monotonic() + wait_s
    while True:  # until it is ours, or the deadline
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)  # flock has no deadline of its own
        else:
            return True
