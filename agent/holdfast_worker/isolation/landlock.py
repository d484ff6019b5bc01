"""A read-only view by Landlock: what a worker still needs to read, and nothing else; it can write, make and execute nothing.

Its release's bytes were read and verified before, so neither the state folder nor any key is among what it may read.
Source: Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import holdfast_shared
import holdfast_worker
from holdfast_worker.isolation import libc

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
# All that touches files in each version of the interface: what is handled and not allowed is refused. The first: up to MAKE_SYM.
_HANDLED: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}

# Libraries that a runtime opens late, and what it asks of the machine. No folder of /proc but this process's own.
_READ: Final = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/os-release",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
)
# Where onnxruntime looks for devices when it is imported; refused, it complains in the log.
DEVICES: Final = (Path("/sys/bus"), Path("/sys/class/drm"), Path("/sys/devices"))
_READ_AND_WRITE: Final = ("/dev/null",)


def version() -> int:
    """Of the kernel's interface. Raises OSError when it has none."""
    return libc.system_call("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION)


def threads_besides() -> int:
    """Other threads of this process: they would keep the whole view."""
    return len(list(Path("/proc/self/task").iterdir())) - 1


def read_only(abi: int, more: Iterable[Path] = (), *, runs: Iterable[Path] = ()) -> None:
    """From now on this thread and its children see little, and `more`, and may execute what `runs` names.

    Raises OSError; needs no new privileges to be set.

    May be repeated: what is seen then is what each allowed.
    """
    handled = max((since, rights) for since, rights in _HANDLED.items() if since <= abi)[1]
    attributes = struct.pack("=Q", handled)
    ruleset = libc.system_call(
        "landlock_create_ruleset", _CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0
    )
    try:
        for path in (*readable(), *more):
            _allow(ruleset, Path(path), _READ_FILE | _READ_DIR)
        for path in runs:
            _allow(ruleset, path, _READ_FILE | _EXECUTE)
        for name in _READ_AND_WRITE:
            _allow(ruleset, Path(name), _READ_FILE | _WRITE_FILE)
        libc.system_call("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


@functools.cache
def readable() -> tuple[Path, ...]:
    """Python and its packages, wherever they lie, and the list above. Never the working directory, which may be `/`."""
    roots = {Path(one).resolve() for one in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    roots |= {Path(one).resolve() for one in sys.path if one and Path(one).resolve() != Path.cwd()}
    roots |= {Path(one).resolve().parents[1] for one in (holdfast_worker.__file__, holdfast_shared.__file__)}
    own = Path(f"/proc/{os.getpid()}")
    return (*(Path(name) for name in _READ), own, *(one for one in sorted(roots) if one != Path("/")))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError, PermissionError):  # what cannot be opened needs no permission either
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not path.is_dir():
                rights &= ~_READ_DIR
            rule = struct.pack("=Qi", rights, descriptor)
            libc.system_call("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
        finally:
            os.close(descriptor)
