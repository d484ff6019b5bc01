"""What is asked for, times what this machine offers: what is applied, in which order, and what is degraded and why.

Pure. A protection that cannot be had is never a reason not to serve: it is `degraded`, and reported as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from holdfast_shared.wire.report import Isolation, Protection

# Whoever turned a protection off is told so for as long as it is off.
TURNED_OFF = "turned off by [gateway] isolation_off"
NOT_COUNTED_ALONE = (
    "threads are bounded by the memory limit alone: give workers a user of their own ([gateway] worker_user), "
    "or the gateway a delegated control group (systemd: Delegate=memory pids)"
)


class Step(StrEnum):
    """One mechanism, in the order in which they are applied: each may forbid what the ones before it need."""

    PRIORITY = "priority"
    CORE = "core"  # RLIMIT_CORE 0, and the first to be chosen when memory runs out
    DATA = "data"  # RLIMIT_DATA
    TASKS = "tasks"  # RLIMIT_NPROC
    NO_NEW_PRIVILEGES = "no-new-privileges"
    NAMESPACE = "namespace"  # a network namespace with nothing in it
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """`isolated` is what the gateway applied from outside, by protection; `off` what its configuration turns off."""

    nice: int = 0
    off: frozenset[str] = frozenset()
    isolated: Mapping[str, str]


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has. Empty reasons: it is there. `landlock` is the ABI's number, 0 when there is none."""

    landlock: int
    no_landlock: str = ""
    no_seccomp: str = ""
    failed: Mapping[Step, str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`told` is what will be true once every step was carried out; `filtered` the system calls that the filter refuses."""

    steps: tuple[Step, ...]
    filtered: frozenset[Protection]
    told: Isolation


def plan(asked: Asked, offered: Offered) -> Plan:
    """What to apply here."""
    applied: dict[str, str] = {}
    degraded: dict[str, str] = {}
    steps = {Step.CORE, Step.NO_NEW_PRIVILEGES} - offered.failed.keys()
    filtered: set[Protection] = set()
    no_filter = offered.no_seccomp or offered.failed.get(Step.SECCOMP, "")

    def settle(protection: Protection, mechanism: str, lacking: str, *needed: Step) -> None:
        if protection in asked.off:
            degraded[protection] = TURNED_OFF
        elif lacking:
            degraded[protection] = lacking
        else:
            applied[protection] = mechanism
            steps.update(needed)

    not_asked = "" if asked.nice else "[gateway] worker_nice is 0"
    lacking = not_asked or offered.failed.get(Step.PRIORITY, "")
    settle("priority", f"nice {asked.nice}", lacking, Step.PRIORITY)
    given = asked.isolated
    if "memory" in given:
        settle("memory", given["memory"], "")
    else:
        settle("memory", "RLIMIT_DATA", offered.failed.get(Step.DATA, ""), Step.DATA)
    if "tasks" in given:
        settle("tasks", given["tasks"], "")
    else:
        alone = "" if "user" in given else NOT_COUNTED_ALONE
        settle("tasks", "RLIMIT_NPROC", alone or offered.failed.get(Step.TASKS, ""), Step.TASKS)
    settle("programs", "seccomp", no_filter, Step.SECCOMP)
    settle("system", "seccomp", no_filter, Step.SECCOMP)
    if no_filter:
        no_namespace = offered.failed.get(Step.NAMESPACE, "")
        lacking = f"{no_filter}; {no_namespace}" if no_namespace else ""
        settle("network", "network namespace", lacking, Step.NAMESPACE)
    else:
        settle("network", "seccomp", "", Step.SECCOMP)
    settle(
        "files",
        f"Landlock {offered.landlock}",
        offered.no_landlock or offered.failed.get(Step.LANDLOCK, ""),
        Step.LANDLOCK,
    )
    if Step.SECCOMP in steps:
        filtered = {one for one in ("programs", "network", "system") if applied.get(one) == "seccomp"}
        if Step.DATA in steps:
            filtered.add("memory")  # shared memory, which RLIMIT_DATA does not count
    return Plan(
        steps=tuple(step for step in Step if step in steps),
        filtered=frozenset(filtered),
        told=Isolation(applied=applied, degraded=degraded),
    )
