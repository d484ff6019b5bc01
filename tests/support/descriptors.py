"""What a process has open; and one for which the kernel opens no more files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def none_left() -> Iterator[Callable[[], None]]:
    """From here on the kernel opens no more files for this process: EMFILE, until the end or the given function is called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def again() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    lowest_free = os.open("/", os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield again
    finally:
        again()


def opened_by(pid: int) -> set[Path]:
    """Files, folders and what else has a path."""
    with contextlib.suppress(OSError):  # it ended, or closed one meanwhile
        return {path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()}
    return set()
