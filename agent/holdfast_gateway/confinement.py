"""How the gateway confines its workers from outside: another user, a control group; and what is true of all of them together.

The worker shuts itself in further (`holdfast_worker/isolation`), and tells what it applied in READY.
"""

from __future__ import annotations

import logging
import pwd
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast_agent.edge import configuration
from holdfast_gateway import control_groups
from holdfast_gateway.control_groups import ControlGroups, Group, NotDelegated
from holdfast_shared.wire.report import Isolation, Protection
from holdfast_worker.protocol import TASKS_MAX

log = logging.getLogger(__name__)

NOT_ASKED: Final = "workers run as the gateway's user: [gateway] worker_user names none"
# What a worker applies to itself, and one of an older version has no word for.
BY_ITSELF: Final[tuple[Protection, ...]] = ("priority", "memory", "tasks", "programs", "network", "system", "files")
SILENT: Final = "a worker of an older version does not say how it is confined"
# CAP_KILL, CAP_SETGID, CAP_SETUID: to become another user, and to end what did.
_NEEDED: Final = 1 << 5 | 1 << 6 | 1 << 7
_PR_CAP_AMBIENT: Final = 47
_CLEAR_ALL: Final = 4


@dataclass(frozen=True, slots=True)
class Account:
    """Who workers run as. They keep the gateway's group, by which they may read what they load."""

    user: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Of every worker of this gateway. `told` is what is true of a worker from its start."""

    account: Account | None = None
    nice: int = 0
    tasks_max: int = TASKS_MAX
    off: tuple[str, ...] = ()
    groups: ControlGroups | None = None
    told: Isolation = field(default_factory=Isolation)

    def hold(self, pid: int, *, memory_bytes_max: int) -> Group | None:
        """Put a process that was just started into a control group of its own, if there are any."""
        if self.groups is None:
            return None
        return self.groups.hold(pid, memory_bytes_max=memory_bytes_max, tasks_max=self.tasks_max)

    def let_go(self, group: Group | None) -> None:
        if self.groups is not None and group is not None:
            self.groups.let_go(group)


def of(asked: configuration.Gateway) -> Confinement:
    """What can be had of what is asked for. What cannot is told, and no reason not to serve."""
    applied: dict[str, str] = {}
    degraded: dict[str, str] = {}
    account, lacking = _account(asked.worker_user)
    if account is not None:
        applied["user"] = asked.worker_user
    else:
        degraded["user"] = lacking
    return Confinement(
        account=account,
        nice=asked.worker_nice,
        tasks_max=asked.worker_tasks_max,
        off=asked.isolation_off,
        groups=_groups(asked.isolation_off),
        told=Isolation(applied=applied, degraded=degraded),
    )


def together(one: Isolation, more: Iterable[Isolation | None]) -> Isolation:
    """What is true of all of them: what any lacks is degraded, with the first reason."""
    degraded, applied = dict(one.degraded), dict(one.applied)
    for other in more:
        if other is None:
            degraded = {**dict.fromkeys(BY_ITSELF, SILENT), **degraded}
        else:
            degraded = {**other.degraded, **degraded}
            applied.update(other.applied)
    return Isolation(applied={name: how for name, how in applied.items() if name not in degraded}, degraded=degraded)


def _groups(off: tuple[str, ...]) -> ControlGroups | None:
    try:
        found = control_groups.find(off=off)
    except NotDelegated as error:
        log.info("workers limit themselves: %s", error)
        return None
    log.info("workers have control groups, limited by: %s", ", ".join(sorted(found.controllers)) or "no controller")
    return found


def _account(name: str) -> tuple[Account | None, str]:
    if not name:
        return None, NOT_ASKED
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return _refused(f"[gateway] worker_user: there is no user {name}")
    if _capabilities("CapEff") & _NEEDED != _NEEDED:
        return _refused(
            f"[gateway] worker_user: this gateway may not start a process as {name}: see deploy/worker-user.conf"
        )
    if _capabilities("CapAmb"):
        # Kept by this process, and not handed on: a worker that inherited them could become anybody.
        from holdfast_worker.isolation import libc  # noqa: PLC0415 - ctypes is a megabyte, for this alone

        libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL)
    return Account(found.pw_uid, found.pw_gid), ""


def _refused(why: str) -> tuple[None, str]:
    log.error("workers run as the gateway's user: %s", why)
    return None, why


def _capabilities(name: str) -> int:
    """A set of them as /proc says it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1], 16)
    return 0
