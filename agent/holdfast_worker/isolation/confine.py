"""Shuts this process in, in two strokes, once: what the machine offers, the plan, and the plan carried out.

`begin` comes before anything is imported that a publisher may have brought along: a runtime, its libraries. It takes the
network, other processes and the rest of the disk. `finish` comes before a model computes: it takes the folders that the release
was read from, and sets the limits that are the release's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from holdfast_shared.wire.report import Isolation, Protection
from holdfast_worker.isolation import landlock, libc, limits, network_namespace, seccomp
from holdfast_worker.isolation.plan import Asked, Offered, Step, plan

# What is not applied before `finish`.
_LAST: Final = frozenset({Step.DATA, Step.LANDLOCK})


def begin(asked: Asked, *, tasks_max: int, reads: Iterable[Path]) -> Begun:
    """Apply what nothing needs from here on but the files below `reads`, Python and its packages. Never raises."""
    begun = Begun(asked, tasks_max)
    begun.apply(set(Step) - _LAST)
    if not begun.offered.no_landlock and "files" not in asked.off:
        # A thread that a library starts when it is imported keeps this view. `finish` tries again, and tells.
        with contextlib.suppress(OSError):
            landlock.read_only(begun.offered.landlock, (*reads, *landlock.DEVICES))
    return begun


class Begun:
    """A process that is half shut in. A step that fails is planned around."""

    def __init__(self, asked: Asked, tasks_max: int) -> None:
        self.offered = _offered()
        self._asked = asked
        self._filtered: frozenset[Protection] = frozenset()
        self._memory_bytes_max = 0
        self._carry_out: dict[Step, Callable[[], None]] = {
            Step.PRIORITY: lambda: limits.lower_priority(asked.nice),
            Step.CORE: _crash_cheaply,
            Step.DATA: lambda: limits.bound_memory(self._memory_bytes_max),
            Step.TASKS: lambda: limits.bound_tasks(tasks_max),
            Step.NO_NEW_PRIVILEGES: lambda: libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1),
            Step.NAMESPACE: network_namespace.leave_the_network,
            Step.LANDLOCK: lambda: landlock.read_only(self.offered.landlock),
            Step.SECCOMP: lambda: seccomp.refuse(self._filtered),
        }

    def finish(self, *, memory_bytes_max: int) -> Isolation:
        """Apply the rest, and say what holds now. Never raises."""
        self._memory_bytes_max = memory_bytes_max
        return self.apply(set(Step))

    def apply(self, steps: Collection[Step]) -> Isolation:
        """Those of the plan that are among `steps`, each once; what will be true when all are done."""
        while True:
            wanted = plan(self._asked, self.offered)
            self._filtered = wanted.filtered
            failed = _first_failure([step for step in wanted.steps if step in steps], self._carry_out)
            if not failed:
                return wanted.told
            self.offered = replace(self.offered, failed={**self.offered.failed, **failed})


def _offered() -> Offered:
    abi, no_landlock = 0, ""
    try:
        abi = landlock.version()
        if others := landlock.threads_besides():
            no_landlock = f"{others} other thread(s) ran already, which Landlock would not bind"
    except OSError as error:
        no_landlock = f"the kernel offers no Landlock ({error.strerror})"
    return Offered(landlock=abi, no_landlock=no_landlock, no_seccomp=seccomp.why_not(), failed={})


def _first_failure(steps: Iterable[Step], carry_out: dict[Step, Callable[[], None]]) -> dict[Step, str]:
    """The step that failed, and why; empty when every one is done. What was done is not done again."""
    for step in steps:
        try:
            carry_out[step]()
        except (OSError, ValueError) as error:
            return {step: f"{step} was refused: {error}"}
        carry_out[step] = _done
    return {}


def _done() -> None:
    pass


def _crash_cheaply() -> None:
    limits.no_core_dumps()
    with contextlib.suppress(OSError):  # without /proc, the kernel chooses by size alone
        limits.first_to_go()
