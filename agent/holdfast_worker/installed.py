"""Which runtimes this interpreter could import, told without importing any: asked by processes that stay small."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from holdfast_shared.variants import Machine

# To import a runtime from a slow card.
ASKED_S: Final = 60.0


def machine(accelerators: Iterable[str] = ()) -> Machine:
    """This one, with the runtimes of this interpreter's environment."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(platform.machine(), memory_bytes, runtimes(), frozenset(accelerators))


def runtimes() -> frozenset[str]:
    """Functions in Python are none of these: they come with a release's environment."""
    found = {"onnx"} if _is_here("onnxruntime") else set()
    if _is_here("ai_edge_litert") or (_is_here("tflite_runtime") and _numpy_major() == 1):
        found.add("tflite")
    return frozenset(found) if _is_here("numpy") else frozenset()


def onnx_providers() -> tuple[str, ...]:
    """What the onnxruntime of this interpreter can compute on, best first, by a process of its own; nothing if it cannot."""
    command = [sys.executable, "-I", "-m", "holdfast_worker.onnx_runtime"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASKED_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(done.stdout.decode("ascii", "replace").split())


def _is_here(package: str) -> bool:
    return find_spec(package) is not None


def _numpy_major() -> int:
    """`tflite-runtime` dies with 2: holdfast_worker/tflite_runtime.py."""
    try:
        return int(version("numpy").partition(".")[0])
    except (PackageNotFoundError, ValueError):
        return 0
