"""Programs that tests need from the system: found, or the test is skipped on a person's machine and failed in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Where Debian puts what is not on everybody's PATH.
_MORE_PLACES = (
    Path("/usr/sbin"),
    Path("/usr/local/sbin"),
    *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
)


def find_program(name: str) -> Path | None:
    """The program's path, or None."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _MORE_PLACES)]))
    return Path(found) if found else None


def need_program(name: str, package: str) -> Path:
    """The program's path. Missing: a failure when CI=true, a skip elsewhere; never a test that passes without it."""
    found = find_program(name)
    if found is None:
        message = f"{name} is missing: apt-get install -y --no-install-recommends {package} (./scripts/test does)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
