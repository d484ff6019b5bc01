"""The shipped gateway with real workers that are out for harm: each attempt costs one failover, and no application a request."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from support import digits_models, hostile_worker, installed_release
from support.gateway_bench import PIPELINE, alive, eventually, running_gateway
from support.isolation_bench import LARGE_BYTES, MIB, after_one_blank_image, told
from support.other_user import AS_NOBODY, packages, python_for_all

pytestmark = pytest.mark.slow

SHIPPED: Final = (sys.executable, "-m", "holdfast_worker")


@pytest.mark.parametrize("off", ["", "memory"], ids=["limited", "unlimited"])
def test_a_model_that_allocates_past_its_limit_costs_one_failover(tmp_path: Path, off: str) -> None:
    """The same size, without the limit, is answered."""
    with running_gateway(tmp_path, worker=SHIPPED, isolation_off=[off] if off else []) as bench:
        came = after_one_blank_image(bench, digits_models.allocates_on_some(LARGE_BYTES))
        assert came.answered_by == ("1.2.0" if off else "1.0.0")
        assert (came.window.requests, came.window.errors, came.window.failed_over) == ((1, 0, 0) if off else (1, 1, 1))
        assert came.status.losses == 0, "it raised, and lives on"
        assert ("memory" in told(came.agent).degraded) == bool(off)


@pytest.mark.parametrize(
    ("harm", "protection"),
    [
        ("fork", "programs"),
        ("ask-the-network", "network"),
    ],
)
def test_what_reaches_beyond_the_worker_costs_one_failover(
    tmp_path: Path, harm: str, protection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the protection it succeeds, and the release answers as if nothing were."""
    secret = tmp_path / "device.key"
    secret.write_bytes(b"secret")
    monkeypatch.setenv("ATTEMPTS_SECRET", str(secret))
    for off in ([], [protection]):
        root = tmp_path / f"off-{len(off)}"
        root.mkdir()
        with running_gateway(root, worker=(sys.executable, hostile_worker.__file__, harm), isolation_off=off) as bench:
            came = after_one_blank_image(bench)
            assert came.answered_by == ("1.2.0" if off else "1.0.0")
            assert came.window.failed_over == (0 if off else 1)


def test_a_model_that_segfaults_costs_one_failover(tmp_path: Path) -> None:
    with running_gateway(tmp_path, worker=(sys.executable, hostile_worker.__file__, "segfault")) as bench:
        came = after_one_blank_image(bench)
        assert came.answered_by == "1.0.0"
        assert (came.window.errors, came.window.failed_over) == (1, 1)
        lost = came.agent.until(lambda said: next((one for one in getattr(said, "slots", ()) if one.losses), None))
        assert (lost.losses, lost.code) == (1, "crash")


def test_a_model_that_loops_for_ever_is_killed_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where forking is not refused, what was forked goes with its worker."""
    left = tmp_path / "child"
    monkeypatch.setenv("ATTEMPTS_SECRET", str(left))
    worker = (sys.executable, hostile_worker.__file__, "leave-a-child")
    with running_gateway(tmp_path, worker=worker, isolation_off=["programs", "files"]) as bench:
        limits = Limits(deadline_ms=1500, load_deadline_s=60)
        came = after_one_blank_image(bench, digits_models.hangs_on_some(), limits)
        assert (came.answered_by, came.window.hangs, came.window.failed_over) == ("1.0.0", 1, 1)
        child = int(left.read_text())
        eventually(lambda: not alive(child), "what the worker forked is alive")


def test_a_worker_that_needs_more_than_its_limit_says_which(tmp_path: Path) -> None:
    with running_gateway(tmp_path, worker=SHIPPED) as bench:
        limits = Limits(memory_bytes_max=16 * MIB)
        bad = installed_release.install(bench.folder, PIPELINE, "1.2.0", digits_models.trained(), limits=limits)
        agent = bench.agent()
        agent.serve(Target(release=bad))
        failed = agent.until_state(Target(release=bad), "failed")
        assert failed.code == "load-failed"
        assert "limits.memory_bytes_max is 16777216" in failed.detail


# -- from outside


def test_workers_run_as_their_own_user_with_less_priority(tmp_path: Path) -> None:
    """Other user, other group beside the gateway's, nice; all of it told."""
    python = python_for_all()
    with (
        open_folder() as root,
        running_gateway(
            root,
            worker=(python, "-m", "holdfast_worker"),
            worker_user="nobody",
            worker_nice=7,
            popen={"env": {**os.environ, "PYTHONPATH": packages(Path(__file__).parents[1])}},
        ) as bench,
    ):
        came = after_one_blank_image(bench)
        assert came.answered_by == "1.2.0"
        fields = status_of(came.status.worker_pid)
        assert fields["Uid"].split() == [str(AS_NOBODY["user"])] * 4
        assert fields["Groups"].split() == [str(os.getegid())]
        assert int(fields["CapEff"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        assert oom_score_of(came.status.worker_pid) > oom_score_of(bench.pid), "workers go first when memory runs out"
        assert os.getpriority(os.PRIO_PROCESS, came.status.worker_pid) == os.getpriority(os.PRIO_PROCESS, 0) + 7
        assert told(came.agent).degraded == {}
        assert told(came.agent).applied == {
            "user": "nobody",
            "priority": "nice 7",
            "memory": "RLIMIT_DATA",
            "tasks": "RLIMIT_NPROC",
            "programs": "seccomp",
            "network": "seccomp",
            "system": "seccomp",
            "files": told(came.agent).applied["files"],
        }


def test_a_gateway_with_three_rights_of_root_keeps_them_to_itself() -> None:
    """As deploy/worker-user.conf runs it: it starts and kills workers of another user, who inherit nothing."""
    python = python_for_all()
    rights = "+setuid,+setgid,+kill"
    become = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", f"--inh-caps={rights}")
    with (
        open_folder() as root,
        running_gateway(
            root,
            worker=(python, "-m", "holdfast_worker"),
            worker_user="daemon",
            python=(*become, f"--ambient-caps={rights}", python),
            popen={"env": {**os.environ, "PYTHONPATH": packages(Path(__file__).parents[1])}},
        ) as bench,
    ):
        limits = Limits(deadline_ms=1500, load_deadline_s=60)
        came = after_one_blank_image(bench, digits_models.hangs_on_some(), limits)
        assert (came.answered_by, came.window.hangs, came.window.failed_over) == ("1.0.0", 1, 1)
        worker = came.agent.until_state(came.good, "ready").worker_pid
        fields = status_of(worker)
        assert fields["Uid"].split() == [str(pwd.getpwnam("daemon").pw_uid)] * 4
        assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}
        assert int(status_of(bench.pid)["CapEff"], 16) == 0b11100000
        assert told(came.agent).degraded == {}


def test_a_gateway_that_may_not_change_users_serves_and_says_so() -> None:
    """Not root, as the unit in deploy/ runs it: the rest is applied all the same."""
    python = python_for_all()
    popen = {
        "env": {**os.environ, "PYTHONPATH": packages(Path(__file__).parents[1])},
        **AS_NOBODY,
    }
    with (
        open_folder() as root,
        running_gateway(
            root, worker=(python, "-m", "holdfast_worker"), worker_user="daemon", python=(python,), popen=popen
        ) as bench,
    ):
        came = after_one_blank_image(bench)
        assert came.answered_by == "1.2.0"
        said = told(came.agent)
        assert said.degraded.keys() == {"user", "tasks"}
        assert "may not start a process as daemon" in said.degraded["user"]
        assert said.applied.keys() == {"priority", "memory", "programs", "network", "system", "files"}


def test_a_user_that_is_not_there_is_told(tmp_path: Path) -> None:
    with running_gateway(tmp_path, worker=SHIPPED, worker_user="no-such-user") as bench:
        came = after_one_blank_image(bench)
        assert told(came.agent).degraded["user"] == "[gateway] worker_user: there is no user no-such-user"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def oom_score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


class open_folder:  # noqa: N801 - used as a function
    """A folder that everybody may enter and change; pytest's own are closed to other users."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="holdfast-open-"))
        for path in (self._path, self._path / "state"):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path)
