"""One agent at a time works on a state folder, whatever a killed one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.record_file import RecordFile
from holdfast_shared.errors import Conflict

DEADLINE_S = 30.0


@contextlib.contextmanager
def held(folder: Path, *, for_s: float) -> Iterator[None]:
    """Locked as an agent locks it, by something that ends after so long."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    ending = threading.Timer(for_s, os.close, [descriptor])
    ending.start()
    try:
        yield
    finally:
        ending.join()


def test_a_lock_that_a_killed_agent_left_to_a_child_is_waited_for(tmp_path: Path) -> None:
    """Between fork and exec of a fetch its child holds all that the agent held."""
    with held(tmp_path, for_s=0.3), RecordFile(StateFolder(tmp_path), wait_s=DEADLINE_S) as opened:
        assert opened.load().boots == 0


def test_a_second_agent_is_refused_and_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", pytest.fail)  # who has another to ask waits for nothing
    with RecordFile(StateFolder(tmp_path)):
        before = list(Path("/proc/self/fd").iterdir())
        with pytest.raises(Conflict, match="another agent runs"):
            RecordFile(StateFolder(tmp_path))
        assert list(Path("/proc/self/fd").iterdir()) == before
