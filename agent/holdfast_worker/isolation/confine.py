"""Shuts this process in: what the machine offers, the plan, and the plan carried out, once, before a model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace

from holdfast_shared.wire.report import Isolation, Protection
from holdfast_worker.isolation import landlock, libc, limits, network_namespace, seccomp
from holdfast_worker.isolation.plan import Asked, Offered, Step, plan


def confine(asked: Asked, *, memory_bytes_max: int, tasks_max: int) -> Isolation:
    """Apply all that can be had, and say what was. A step that fails is planned around, and never raises."""
    offered = _offered()
    filtered: frozenset[Protection] = frozenset()
    carry_out: dict[Step, Callable[[], None]] = {
        Step.PRIORITY: lambda: limits.lower_priority(asked.nice),
        Step.CORE: _crash_cheaply,
        Step.DATA: lambda: limits.bound_memory(memory_bytes_max),
        Step.TASKS: lambda: limits.bound_tasks(tasks_max),
        Step.NO_NEW_PRIVILEGES: lambda: libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1),
        Step.NAMESPACE: network_namespace.leave_the_network,
        Step.LANDLOCK: lambda: landlock.read_only(offered.landlock),
        Step.SECCOMP: lambda: seccomp.refuse(filtered),
    }
    while True:
        wanted = plan(asked, offered)
        filtered = wanted.filtered
        failed = _first_failure(wanted.steps, carry_out)
        if not failed:
            return wanted.told
        offered = replace(offered, failed={**offered.failed, **failed})


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
