"""The subtree of control groups that the service manager delegated to this gateway: a group for each worker, with its limits.

Nothing is written outside that subtree, and nothing anywhere unless it is delegated: systemd marks what it gave away
(`Delegate=` in the unit) with an extended attribute. Without, workers limit themselves. The gateway moves into a leaf of its
own first, as a group that hands controllers to its children may hold no process (cgroups(7), "no internal processes").
Source: systemd's docs/CGROUP_DELEGATION, the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MARKS: Final = ("user.delegate", "trusted.delegate")
OWN_LEAF: Final = "gateway"
WORKER_PREFIX: Final = "worker-"
# Controllers that limit a worker, and the protection that each is.
WANTED: Final = {"memory": "memory", "pids": "tasks"}
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_MOUNTS: Final = Path("/proc/self/mountinfo")


class NotDelegated(Exception):
    """Why there are no groups for workers."""


@dataclass(frozen=True, slots=True)
class Group:
    """One worker's. `applied` says which protections its limits are."""

    path: Path
    applied: Mapping[str, str]

    @property
    def reached_its_limit(self) -> bool:
        """Whether the kernel ended anything in it because the group, and not the machine, had no more memory."""
        with contextlib.suppress(OSError, ValueError):
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(events.get("oom", 0)) > 0
        return False

    def kill(self) -> None:
        """Everything in it, also what left its process group. May be repeated."""
        with contextlib.suppress(OSError):  # older than Linux 5.14, or gone
            (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> bool:
        """Whether it is gone; it goes once the last of its processes was reaped."""
        with contextlib.suppress(FileNotFoundError):
            try:
                self.path.rmdir()
            except OSError:
                return False
        return True


class ControlGroups:
    """Made by `find`. `controllers` are those of WANTED that limit workers here."""

    def __init__(self, top: Path, controllers: frozenset[str]) -> None:
        self._top = top
        self._left: list[Group] = []
        self.controllers = controllers

    def hold(self, pid: int, *, memory_bytes_max: int, tasks_max: int) -> Group | None:
        """Put a process that was just started into a group of its own; None when the kernel refuses."""
        self._left = [group for group in self._left if not group.remove()]
        group = Group(self._top / f"{WORKER_PREFIX}{pid}", {})
        try:
            group.path.mkdir()
            applied = {}
            if "memory" in self.controllers:
                (group.path / "memory.max").write_text(str(memory_bytes_max))
                _where_there_is(lambda: (group.path / "memory.swap.max").write_text("0"))
                applied["memory"] = "cgroup memory.max"
            if "pids" in self.controllers:
                (group.path / "pids.max").write_text(str(tasks_max))
                applied["tasks"] = "cgroup pids.max"
            (group.path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("worker %d has no control group, and limits itself: %s", pid, error)
            group.remove()
            return None
        return Group(group.path, applied)

    def let_go(self, group: Group) -> None:
        """Its worker was reaped. What of it is not gone yet is looked for at the next start."""
        group.kill()
        if not group.remove():
            self._left.append(group)


def find(*, off: Sequence[str] = ()) -> ControlGroups:
    """The subtree that is ours, ready for workers, less the protections that are off. Raises NotDelegated with the reason."""
    own = _own()
    top = own.parent if own.name == OWN_LEAF and _is_delegated(own.parent) else own
    if not _is_delegated(top):
        raise NotDelegated(f"the control group {own} is not delegated to this gateway (systemd: Delegate=memory pids)")
    try:
        if top == own:
            (top / OWN_LEAF).mkdir(exist_ok=True)
            (top / OWN_LEAF / "cgroup.procs").write_text(str(os.getpid()))
        for left in top.glob(f"{WORKER_PREFIX}*"):  # by a gateway that was killed
            group = Group(left, {})
            group.kill()
            group.remove()
        offered = (top / "cgroup.controllers").read_text().split()
        controllers = frozenset(one for one in offered if one in WANTED and WANTED[one] not in off)
        for one in sorted(controllers):
            (top / "cgroup.subtree_control").write_text(f"+{one}")
    except OSError as error:
        raise NotDelegated(f"the control group {top} cannot be divided: {error}") from error
    return ControlGroups(top, controllers)


def _own() -> Path:
    """The folder of this process's group in the unified hierarchy."""
    mounted = _mounted()
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError as error:
        raise NotDelegated(f"{_MEMBERSHIP} cannot be read: {error.strerror}") from error
    place = next((line[3:] for line in lines if line.startswith("0::")), "/")
    if mounted is None:
        raise NotDelegated("control groups (v2) are not mounted here")
    if place == "/":
        raise NotDelegated("this gateway is in the root control group, which is the machine's")
    return mounted / place.lstrip("/")


def _mounted() -> Path | None:
    """Where the whole unified hierarchy lies: field 4 is the part of it that is mounted, 5 where, then options, `-`, the type."""
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text().splitlines():
            before, _, after = line.partition(" - ")
            fields = before.split()
            if after.startswith("cgroup2 ") and fields[3] == "/":
                return Path(fields[4])
    return None


def _is_delegated(group: Path) -> bool:
    for name in MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _where_there_is(write: Callable[[], object]) -> None:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        write()
