"""A gateway with a delegated subtree of control groups: what it writes, and that it writes nowhere else.

Where the kernel offers `memory` and `pids` to the unified hierarchy, the limits are proved for real; this project's own test
machine does not, so there only moving, killing and removing are, and the limits' values on an ordinary folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_gateway import control_groups
from holdfast_gateway.control_groups import MARKS, OWN_LEAF, ControlGroups, NotDelegated
from holdfast_shared.wire.release import Limits
from support import digits_models, hostile_worker
from support.gateway_bench import alive, eventually, running_gateway
from support.isolation_bench import LARGE_BYTES, LIMITS, after_one_blank_image, told


def test_a_group_has_the_limits_of_its_worker_before_its_worker(tmp_path: Path) -> None:
    """On an ordinary folder: the files and their values are the kernel's interface."""
    groups = ControlGroups(tmp_path, frozenset({"memory", "pids"}))
    group = groups.hold(4242, memory_bytes_max=64 * 1024**2, tasks_max=12)
    assert group is not None
    assert group.applied == {"memory": "cgroup memory.max", "tasks": "cgroup pids.max"}
    assert {path.name: path.read_text() for path in group.path.iterdir()} == {
        "memory.max": str(64 * 1024**2),
        "memory.swap.max": "0",
        "pids.max": "12",
        "cgroup.procs": "4242",
    }


def test_a_controller_that_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    group = ControlGroups(tmp_path, frozenset({"pids"})).hold(1, memory_bytes_max=1, tasks_max=12)
    assert group is not None
    assert group.applied == {"tasks": "cgroup pids.max"}


def test_a_group_that_cannot_be_made_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    assert ControlGroups(tmp_path / "gone", frozenset({"pids"})).hold(1, memory_bytes_max=1, tasks_max=12) is None


def test_what_is_not_delegated_is_not_written() -> None:
    """Root could write everywhere: that is no reason to."""
    with pytest.raises(NotDelegated):
        control_groups.find()


# -- the kernel's own


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group as systemd would hand it over."""
    mounted = control_groups._mounted()
    if os.geteuid() != 0 or mounted is None or not os.access(mounted, os.W_OK):
        pytest.skip("needs root and a control group hierarchy (v2) that it may write")
    top = mounted / f"holdfast-test-{os.getpid()}"
    try:
        top.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    os.setxattr(top, MARKS[0], b"1")
    try:
        yield top
    finally:
        for path in [*top.iterdir(), top]:
            if path.is_dir():
                eventually(control_groups.Group(path, {}).remove, f"{path} is not empty")


def processes(group: Path) -> set[int]:
    return {int(line) for line in (group / "cgroup.procs").read_text().split()}


@pytest.mark.slow
def test_every_worker_has_a_group_and_nothing_is_left_of_it(
    delegated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it forked into a session of its own ends with it, which a process group alone could not do."""
    left = tmp_path / "child"
    monkeypatch.setenv("ATTEMPTS_SECRET", str(left))
    enter = f'echo $$ > {delegated}/cgroup.procs && exec {sys.executable} "$@"'
    python = ("/bin/sh", "-c", enter, "sh")
    worker = (sys.executable, hostile_worker.__file__, "leave-a-session")
    with running_gateway(tmp_path, worker=worker, python=python, isolation_off=["programs", "files"]) as bench:
        limits = Limits(deadline_ms=1500, load_deadline_s=60)
        came = after_one_blank_image(bench, digits_models.hangs_on_some(), limits)
        assert (came.answered_by, came.window.hangs, came.window.failed_over) == ("1.0.0", 1, 1)
        child = int(left.read_text())
        eventually(lambda: not alive(child), "what the worker forked is alive")
        assert processes(delegated) == set()
        assert processes(delegated / OWN_LEAF) == {bench.pid}
        ready = came.agent.until_state(came.good, "ready")
        assert processes(delegated / f"worker-{ready.worker_pid}") == {ready.worker_pid}
        offered = (delegated / "cgroup.controllers").read_text().split()
        memory = "cgroup memory.max" if "memory" in offered else "RLIMIT_DATA"
        assert told(came.agent).applied["memory"] == memory


@pytest.mark.slow
def test_what_a_killed_gateway_left_is_ended_by_the_next(delegated: Path, tmp_path: Path) -> None:
    """A worker may be stuck in the kernel as its gateway dies, or have left a child in a session of its own."""
    left = delegated / "worker-4242"
    left.mkdir()
    with subprocess.Popen(["sleep", "3600"]) as stuck:
        try:
            (left / "cgroup.procs").write_text(str(stuck.pid))
            enter = f'echo $$ > {delegated}/cgroup.procs && exec {sys.executable} "$@"'
            with running_gateway(tmp_path, python=("/bin/sh", "-c", enter, "sh")):
                assert stuck.wait(30) == -signal.SIGKILL
        finally:
            stuck.kill()


@pytest.mark.slow
def test_a_model_past_its_groups_memory_costs_one_failover(delegated: Path, tmp_path: Path) -> None:
    if "memory" not in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("the kernel here offers no memory controller to control groups v2")
    enter = f'echo $$ > {delegated}/cgroup.procs && exec {sys.executable} "$@"'
    python = ("/bin/sh", "-c", enter, "sh")
    with running_gateway(tmp_path, worker=(sys.executable, "-m", "holdfast_worker"), python=python) as bench:
        came = after_one_blank_image(bench, digits_models.allocates_on_some(LARGE_BYTES), LIMITS)
        assert (came.answered_by, came.window.failed_over) == ("1.0.0", 1)
        assert told(came.agent).applied["memory"] == "cgroup memory.max"
