"""`python -I -m holdfast_worker.isolation.launch ORDER COMMAND…`: shut in what an environment runs before any of it runs.

An interpreter runs a stranger's lines (`.pth` files, `sitecustomize`) before a worker can shut itself in. So the device's own
interpreter does what outlives an exec: no new privileges, no core, the first to go, no more tasks, a read-only view, no sockets.
What the new interpreter itself needs cannot be taken yet: its `exec`, and what would keep the worker from its own priority.

Nothing is told here: the worker finds out again what holds, and tells. It imports little: it is a part of every start.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from holdfast_worker.isolation import landlock, libc, limits, seccomp

if TYPE_CHECKING:
    from holdfast_shared.wire.report import Protection

# Dynamic programs are begun by one of these, which the kernel opens as it opens a program.
_LOADERS: Final = ("lib64/ld-*", "lib/ld-*", "lib/*/ld-*", "usr/lib/ld-*", "usr/lib64/ld-*", "usr/lib/*/ld-*")
_FIRST: Final[tuple[Protection, ...]] = ("network",)


def order(
    *, root: Path, reads: Collection[Path], off: Collection[str], tasks_max: int, variables: Mapping[str, str]
) -> str:
    """The first argument. `root` is the environment; `tasks_max` 0 leaves that to others; `variables` are for it alone."""
    found = {"root": str(root), "reads": [str(one) for one in reads], "off": sorted(off), "tasks_max": tasks_max}
    return json.dumps({**found, "variables": dict(variables)})


def main(arguments: list[str]) -> None:
    """Shut in, and become the command. Raises OSError when it cannot be run."""
    asked, command = json.loads(arguments[0]), arguments[1:]
    _shut_in(asked, command[0])
    os.execve(command[0], command, {**os.environ, **asked["variables"]})  # noqa: S606 - no shell: that is the point


def _shut_in(asked: Mapping[str, Any], program: str) -> None:
    """What can be had, of what is not turned off. The worker tells what could not."""
    with contextlib.suppress(OSError):
        limits.no_core_dumps()
        limits.first_to_go()
    if asked["tasks_max"]:
        with contextlib.suppress(OSError, ValueError):
            limits.bound_tasks(asked["tasks_max"])
    with contextlib.suppress(OSError):
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    if "files" not in asked["off"]:
        runs = (Path(program), *(found for pattern in _LOADERS for found in Path("/").glob(pattern)))
        with contextlib.suppress(OSError):
            landlock.read_only(landlock.version(), (asked["root"], *asked["reads"], *landlock.DEVICES), runs=runs)
    if "network" not in asked["off"] and not seccomp.why_not():
        with contextlib.suppress(OSError):
            seccomp.refuse(_FIRST)


if __name__ == "__main__":
    main(sys.argv[1:])
