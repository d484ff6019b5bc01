"""Python as a user without privileges, who cannot enter the home directory that this Python may lie in."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

import pytest

NOBODY: Final = 65534
_SYSTEMS: Final = "/usr/bin/python3"
# As whom: subprocess' arguments.
AS_NOBODY: Final[dict[str, Any]] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def python_for_all() -> str:
    """An interpreter of this version that everybody may start, with `packages()` as its PYTHONPATH. Skips where there is none."""
    if os.geteuid() != 0:
        pytest.skip("only root may start processes as another user")
    for candidate in (sys.executable, _SYSTEMS):
        if Path(candidate).exists() and _version(candidate) == list(sys.version_info[:2]):
            return candidate
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pytest.skip(f"no Python {version} that another user may start, or this checkout lies where they may not read it")


def packages(*first: Path) -> str:
    """Where this Python finds packages, for PYTHONPATH. The standard library is the interpreter's own."""
    library = sysconfig.get_path("stdlib")
    found = [one for one in sys.path if one and ("site-packages" in one or not one.startswith(library))]
    return ":".join([*map(str, first), *found])


def _version(python: str) -> list[int]:
    """Of one that this user may start, and that finds what our tests import; else nothing."""
    command = [python, "-c", "import sys, numpy, holdfast_worker, support; print(*sys.version_info[:2])"]
    environment = {**os.environ, "PYTHONPATH": packages(Path(__file__).parents[1])}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, cwd="/", **AS_NOBODY
        )
    except PermissionError:
        return []
    return [int(one) for one in ended.stdout.split()]
