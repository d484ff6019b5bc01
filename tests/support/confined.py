"""Runs a command under a unit's own system call filter, as systemd would: the real filter, by libseccomp, without systemd.

`python confined.py UNIT COMMAND…`. What the unit allows is asked of systemd-analyze; what it forbids fails with EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

ALLOW: Final = 0x7FFF0000
REFUSE: Final = 0x00050000 | errno.EPERM
# systemd always allows them: without, no service could even be executed.
ALWAYS: Final = "@default"
# mmap(2), mprotect(2): what MemoryDenyWriteExecute= refuses.
_PROT_EXEC: Final = 4
_MASKED_EQUAL: Final = 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def settings(unit: Path, name: str) -> list[str]:
    """Every value of a setting, in order."""
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{name}=")]


def calls_of(group: str) -> set[str]:
    """The system calls of a systemd group, its groups resolved."""
    said = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for line in said.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= calls_of(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def allowed_by(unit: Path) -> set[str]:
    """What SystemCallFilter= lets through."""
    found = calls_of(ALWAYS)
    for value in settings(unit, "SystemCallFilter"):
        words = value.removeprefix("~").split()
        named = {call for word in words for call in (calls_of(word) if word.startswith("@") else {word})}
        found = found - named if value.startswith("~") else found | named
    return found


def confine(calls: set[str], *, deny_write_execute: bool) -> None:
    """This process, and whatever it becomes, from now on."""
    library: Any = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(REFUSE))
    executable = _Comparison(2, _MASKED_EQUAL, _PROT_EXEC, 0)  # only without PROT_EXEC
    for call in sorted(calls):
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            continue  # of another architecture
        if deny_write_execute and call in ("mprotect", "pkey_mprotect"):
            library.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(executable))
        else:
            library.seccomp_rule_add(context, ALLOW, number, 0)
    failed = library.seccomp_load(context)
    if failed:
        raise OSError(-failed, "the filter cannot be loaded")


def refuse(calls: Iterable[str]) -> None:
    """This process as on a machine that refuses just those calls, and nothing else."""
    library: Any = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ALLOW))
    for call in calls:
        library.seccomp_rule_add(context, REFUSE, library.seccomp_syscall_resolve_name(call.encode()), 0)
    failed = library.seccomp_load(context)
    if failed:
        raise OSError(-failed, "the filter cannot be loaded")


def main() -> None:
    unit = Path(sys.argv[1])
    calls = allowed_by(unit)
    deny = settings(unit, "MemoryDenyWriteExecute") == ["yes"]
    confine(calls, deny_write_execute=deny)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
