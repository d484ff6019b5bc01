"""The shipped worker with a release that is out for harm: `python hostile_worker.py HARM --fd N`.

For a blank image it does HARM before it answers: one of `support.attempts`, `segfault`, or `leave-a-child`, which forks and waits
(`leave-a-session`: out of its process group). What is refused is raised as a model would; what succeeds is answered well.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from holdfast_worker import main, release_runner
from holdfast_worker.failures import ModelRaised
from support import attempts

# digits_models.COLUMN; that module would bring what no worker has.
COLUMN = 1
# Of the release on trial; the other one is honest.
VERSION = "1.2.0"


def harmful(harm: str) -> None:
    """Have every runner do it."""
    honest = release_runner.Runner.run

    def run(self: Any, request: Mapping[str, Any], spent_us: dict[str, int] | None = None) -> Any:
        if self.version == VERSION and not request["image"][:, COLUMN::8].sum(axis=1).all():
            try:
                _do(harm)
            except (OSError, MemoryError, RuntimeError) as error:
                raise ModelRaised(f"{harm}: {error}") from error
        return honest(self, request, spent_us)

    release_runner.Runner.run = run  # type: ignore[method-assign]


def _do(harm: str) -> None:
    if harm == "segfault":
        ctypes.string_at(0)
    elif harm in ("leave-a-child", "leave-a-session"):
        if os.fork() == 0:
            if harm == "leave-a-session":
                os.setsid()
            attempts.SECRET.write_text(str(os.getpid()))
            time.sleep(3600)
        while not attempts.SECRET.exists():
            time.sleep(0.005)
    else:
        attempts.ATTEMPTS[harm]()


if __name__ == "__main__":
    harmful(sys.argv.pop(1))
    sys.exit(main.main())
