"""Loads a system call filter into this process: all its threads, and for ever."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from holdfast_worker.isolation import libc
from holdfast_worker.isolation.seccomp_filter import program
from holdfast_worker.isolation.system_calls import MACHINES, SECCOMP

if TYPE_CHECKING:
    from holdfast_shared.wire.report import Protection

_SET_MODE_FILTER: Final = 1
_GET_ACTION_AVAIL: Final = 2
# All threads; and no slower branches and stores for it, which kernels before 5.16 would otherwise buy with it: a worker's rest
# is its own, and what a model could read of it by timing it could read anyway.
_FLAGS: Final = 1 | 1 << 2  # TSYNC, SPEC_ALLOW
_ERRNO: Final = 0x00050000
_INSTRUCTION_BYTES: Final = 8


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def why_not() -> str:
    """Why this machine has no filter for us; empty when it has."""
    machine = os.uname().machine
    if machine not in MACHINES:
        return f"no seccomp filter for {machine} yet"
    try:
        libc.system_call("seccomp", _number(), _GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(_ERRNO)))
    except OSError as error:
        return f"the kernel offers no seccomp filter ({error.strerror})"
    return ""


def refuse(protections: Iterable[Protection]) -> None:
    """From now on what those protections forbid fails with EPERM. Raises OSError; needs no new privileges to be set."""
    code = program(os.uname().machine, protections, os.getpid())
    loaded = _Program(len(code) // _INSTRUCTION_BYTES, code)
    libc.system_call("seccomp", _number(), _SET_MODE_FILTER, _FLAGS, ctypes.byref(loaded))


def _number() -> int:
    return SECCOMP[MACHINES[os.uname().machine]]
