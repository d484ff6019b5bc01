"""The filter's program, as numbers: what the kernel runs before every system call of a worker. Pure.

A refused call fails with EPERM, as a forbidden one would anyway, so a library that can do without it does; killing would make
a crash of it. Calls that are let through whatever their arguments cost nothing: the kernel remembers them (Linux 5.11).
Source: Documentation/userspace-api/seccomp_filter.rst, linux/filter.h, linux/audit.h, linux/sched.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from holdfast_worker.isolation.system_calls import JUDGED, MACHINES, NONE, REFUSED

if TYPE_CHECKING:
    from holdfast_shared.wire.report import Protection

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# x86_64's second set of numbers (x32): the same calls under other names.
_X32_FROM: Final = 0x40000000

_KILL: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
# glibc then makes its threads with `clone`, whose flags a filter can see.
_NOT_THERE: Final = 0x00050000 | errno.ENOSYS

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
# Where they lie in struct seccomp_data, the low half of an argument first: both machines are little-endian.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

_CLONE_THREAD: Final = 0x00010000
_MAP_SHARED_ANONYMOUS: Final = 0x21

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def program(machine: str, refused: Iterable[Protection], pid: int) -> bytes:
    """An array of struct sock_filter for a process whose number is `pid`. `machine` must be one of MACHINES."""
    column = MACHINES[machine]
    wanted = frozenset(refused)
    numbers = sorted({calls[column] for one in wanted for calls in REFUSED[one].values()} - {NONE})
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        lines += [(_IF_AT_LEAST, 0, 1, _X32_FROM), (_RETURN, 0, 0, _REFUSE)]
    for number in numbers:
        lines += _when(number, [(_RETURN, 0, 0, _REFUSE)])
    for name, judgement in _judgements(wanted, pid).items():
        lines += _when(JUDGED[name][column], judgement)
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _judgements(wanted: frozenset[Protection], pid: int) -> dict[str, list[Instruction]]:
    """What decides by arguments; each ends in a return."""
    found: dict[str, list[Instruction]] = {}
    if "programs" in wanted:
        found["clone"] = [
            (_LOAD, 0, 0, _ARGUMENTS),
            (_IF_ANY_BIT, 0, 1, _CLONE_THREAD),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
        found["clone3"] = [(_RETURN, 0, 0, _NOT_THERE)]
    if "system" in wanted:
        found["kill"] = found["tgkill"] = _only(pid)  # abort() signals itself
        found["prlimit64"] = _only(pid, 0)  # setrlimit() is prlimit64(0, …)
    if "memory" in wanted:
        found["mmap"] = [
            (_LOAD, 0, 0, _ARGUMENTS + 3 * 8),
            (_AND, 0, 0, _MAP_SHARED_ANONYMOUS),
            (_IF_EQUAL, 0, 1, _MAP_SHARED_ANONYMOUS),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return found


def _only(*pids: int) -> list[Instruction]:
    lines: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS)]
    for pid in pids:
        lines += [(_IF_EQUAL, 0, 1, pid), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, (_RETURN, 0, 0, _REFUSE)]


def _when(number: int, then: list[Instruction]) -> list[Instruction]:
    return [(_IF_EQUAL, 0, len(then), number), *then]
