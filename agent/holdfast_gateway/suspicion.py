"""Whether an environment is still what was built: asked before anything that goes wrong in it is held against a release.

A package that rotted fails as a bad release does: it will not load, answers otherwise, or crashes. Rot is mended, not condemned.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from holdfast_agent.edge import environments
from holdfast_shared.failure_codes import FailureCode


class Finding(NamedTuple):
    """`code` is empty when the environment is whole: then it was not to blame."""

    code: str = ""
    detail: str = ""


def verify(root: Path, told: Callable[[Finding], None]) -> None:
    """Read all of it on a thread, some seconds for 100 MB on a slow disk, and tell the event loop that this is called from."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        found = _found(root)
        with contextlib.suppress(RuntimeError):  # the gateway has ended meanwhile
            loop.call_soon_threadsafe(told, found)

    threading.Thread(target=run, name="verifying", daemon=True).start()


def _found(root: Path) -> Finding:
    try:
        why = environments.damaged(root)
    except OSError as error:
        return Finding(FailureCode.UNREADABLE, f"its environment cannot be read: {error}")
    return Finding(FailureCode.DAMAGED_BLOB, f"its environment rotted on this disk: {why}") if why else Finding()
