"""What setrlimit and nice can bound. Hard limits: this process cannot raise them again, unless it runs as root.

RLIMIT_DATA counts private writable memory, touched or not: heap, arenas, weights, thread stacks. Not RLIMIT_AS: that counts
code and reservations too, of which numpy and a model runtime make hundreds of megabytes and use none (measured in the README).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

# Above anything that the system runs by itself, below what a person says by hand: workers go first, one failover each.
_OOM_SCORE: Final = b"500"


def no_core_dumps() -> None:
    """A crash leaves no copy of weights and requests on the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def first_to_go() -> None:
    """When the whole device runs out of memory, let the kernel choose this process before any other."""
    Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)


def lower_priority(nice: int) -> None:
    """Below what the gateway has, by so much."""
    os.nice(nice)


def bound_memory(bytes_max: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_max, bytes_max))


def bound_tasks(tasks_max: int) -> None:
    """Threads and processes of this user, all its workers together."""
    resource.setrlimit(resource.RLIMIT_NPROC, (tasks_max, tasks_max))


def memory_counted_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
