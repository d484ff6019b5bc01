"""What an environment measures of itself: the same release may answer differently on another runtime, numpy or CPU.

Reported by the device, so that a change of it is seen beside the change of behaviour it caused. No host name, no path.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from holdfast_worker.protocol import FINGERPRINT_BETWEEN
from holdfast_worker.runtime import Runtime

_CPU_INFORMATION: Final = Path("/proc/cpuinfo")
_SYSTEM_RELEASE: Final = Path("/etc/os-release")


def measure(runtimes: Iterable[Runtime]) -> dict[str, str]:
    """`runtimes`: of each stage, in order."""
    system = os.uname()
    return {
        **_described(runtimes),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "os": _distribution() or system.sysname,
        "kernel": f"{system.sysname} {system.release}",
        "machine": system.machine,
        "cpu_flags": _cpu_flags_digest(),
    }


def _described(runtimes: Iterable[Runtime]) -> dict[str, str]:
    """What each says of itself, each word once: `onnxruntime 1.32.0; ai-edge-litert 2.3.0` in a pipeline that needs both."""
    said: dict[str, dict[str, None]] = {}
    for runtime in runtimes:
        for name, words in runtime.describe().items():
            said.setdefault(name, {})[words] = None
    return {name: FINGERPRINT_BETWEEN.join(words) for name, words in said.items()}


def _cpu_flags_digest() -> str:
    """The first 16 hex digits over the sorted flags: runtimes choose their kernels by them. Empty where none are told."""
    for line in _lines(_CPU_INFORMATION):
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86; Arm
            return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]
    return ""


def _distribution() -> str:
    for line in _lines(_SYSTEM_RELEASE):
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
