"""The system calls that Python has no function for. Each raises OSError with the kernel's reason."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

PR_SET_NO_NEW_PRIVS: Final = 38

_libc: Final = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0) -> None:
    if _libc.prctl(ctypes.c_int(option), *[ctypes.c_ulong(one) for one in (value, 0, 0, 0)]) < 0:
        raise _failure(f"prctl({option})")


def unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _failure("unshare")


def system_call(name: str, number: int, *arguments: Any) -> int:
    """By its number. Whole numbers are passed as longs, everything else as it is."""
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    answered = int(_libc.syscall(ctypes.c_long(number), *given))
    if answered < 0:
        raise _failure(name)
    return answered


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
