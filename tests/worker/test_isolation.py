"""Each protection for real, in a process that confines itself as a worker does: harm is refused with it and done without it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from support.other_user import AS_NOBODY, packages, python_for_all

TESTS: Final = Path(__file__).parents[1]
HARM: Final = {
    "memory": ("allocate", "share-memory", "name-memory"),
    "programs": ("fork",),
    "network": ("ask-the-network", "ask-this-device"),
    "system": ("signal-the-parent", "limit-the-parent", "change-namespace"),
    "files": ("read-a-secret", "list-a-folder", "write-a-file", "delete-a-file"),
}
ALL_HARM: Final = [harm for harms in HARM.values() for harm in harms]
REFUSED: Final = ("PermissionError", "MemoryError", "OSError: [Errno 12]")


class Seen(NamedTuple):
    early: dict[str, str]
    came: dict[str, str]
    applied: dict[str, str]
    degraded: dict[str, str]


def tried(
    *names: str,
    off: str = "",
    missing: str = "",
    early: str = "",
    secret: Path,
    blobs: Path | None = None,
    python: str = sys.executable,
    **more: Any,
) -> Seen:
    """What came of each, on a machine that refuses the system calls that are `missing`."""
    environment = {**os.environ, "PYTHONPATH": packages(TESTS), "ATTEMPTS_SECRET": str(secret)}
    environment["ATTEMPTS_BLOBS"] = str(blobs or secret.parent)
    environment |= {"ATTEMPTS_MISSING": missing, "ATTEMPTS_EARLY": early}
    command = [python, "-m", "support.attempts", off, *names]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd="/", **more)
    assert ended.returncode == 0, ended.stderr
    return Seen(**json.loads(ended.stdout))


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Everything tried by a process with every protection."""
    secret = tmp_path_factory.mktemp("confined") / "device.key"
    secret.write_bytes(b"secret")
    return tried("use-what-a-runtime-needs", "dump-core", *ALL_HARM, secret=secret)


@pytest.mark.parametrize("protection", HARM)
def test_harm_is_refused_with_the_protection_and_done_without_it(
    protection: str, confined: Seen, tmp_path: Path
) -> None:
    secret = tmp_path / "device.key"
    secret.write_bytes(b"secret")
    assert protection in confined.applied
    for harm in HARM[protection]:
        assert confined.came[harm].startswith(REFUSED), (harm, confined.came[harm])
    without = tried(*HARM[protection], off=protection, secret=secret)
    assert protection in without.degraded
    assert without.came == dict.fromkeys(HARM[protection], "done")


def test_a_runtime_finds_all_that_it_needs(confined: Seen) -> None:
    """Threads, memory, packages that are imported late, its own signals: nothing of that is refused."""
    assert confined.came["use-what-a-runtime-needs"] == "done"


def test_a_program_is_run_only_without_two_protections(confined: Seen, tmp_path: Path) -> None:
    """Nothing may be forked, and nothing in the view may be executed."""
    for off, came in (("files", "PermissionError"), ("programs", "PermissionError"), ("files,programs", "done")):
        assert tried("run-a-program", off=off, secret=tmp_path).came["run-a-program"].startswith(came), off


def test_what_makes_sockets_without_a_socket_call_is_refused_by_either(tmp_path: Path) -> None:
    for off, refused in (("system", True), ("network", True), ("network,system", False)):
        came = tried("make-a-ring", off=off, secret=tmp_path).came["make-a-ring"]
        assert came.startswith("PermissionError") == refused, (off, came)


def test_a_crash_leaves_no_core(confined: Seen) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine forbids cores to everybody")
    assert "no core" in confined.came["dump-core"]


def test_threads_are_counted_for_a_user_of_their_own(confined: Seen, tmp_path: Path) -> None:
    """With the limit a few, without it as many as are wanted; where others would be counted too, it is not claimed."""
    assert ("tasks" in confined.degraded) == (os.geteuid() == 0)
    python = python_for_all()
    few = tried("start-threads", secret=tmp_path, python=python, **AS_NOBODY)
    assert few.applied["tasks"] == "RLIMIT_NPROC"
    assert few.came["start-threads"].startswith("RuntimeError: can't start new thread")
    many = tried("start-threads", off="tasks", secret=tmp_path, python=python, **AS_NOBODY)
    assert many.came["start-threads"] == "done"


def test_a_user_without_any_privilege_confines_itself_as_well() -> None:
    """By the same mechanisms: none of them needs root."""
    readable, python = Path("/etc/passwd"), python_for_all()
    harm = ["allocate", "fork", "ask-the-network", "signal-the-parent", "change-namespace", "read-a-secret"]
    refused = tried(*harm, secret=readable, python=python, **AS_NOBODY)
    assert all(came.startswith(REFUSED) for came in refused.came.values()), refused.came
    everything = ",".join([*HARM, "tasks"])
    done = tried(
        "allocate",
        "fork",
        "ask-the-network",
        "read-a-secret",
        off=everything,
        secret=readable,
        python=python,
        **AS_NOBODY,
    )
    assert set(done.came.values()) == {"done"}


def test_what_is_imported_before_the_release_is_read_is_confined_already(tmp_path: Path) -> None:
    """It may read what the release is read from, which is gone before the model computes; nothing else, and write nothing."""
    inside, outside = tmp_path / "blobs" / "blob", Path("/etc/passwd")
    inside.parent.mkdir()
    inside.write_bytes(b"weights")
    harm = "fork,ask-the-network,signal-the-parent,write-a-file,delete-a-file"
    found = tried("read-a-secret", early=f"read-a-secret,{harm}", secret=inside)
    assert found.early.pop("read-a-secret") == "done"
    assert all(came.startswith(REFUSED) for came in found.early.values()), found.early
    assert found.came["read-a-secret"].startswith(REFUSED)
    elsewhere = tried(early="read-a-secret", secret=outside, blobs=inside.parent)
    assert elsewhere.early["read-a-secret"].startswith(REFUSED)


LANDLOCK: Final = "landlock_create_ruleset"


def test_a_machine_without_filters_leaves_the_network_by_a_namespace(tmp_path: Path) -> None:
    """For real: no way leads anywhere, though a socket is had. What nothing stands in for is told."""
    found = tried("reach-the-network", "ask-the-network", missing="seccomp", secret=tmp_path)
    assert found.applied["network"] == "network namespace"
    assert found.came == {"reach-the-network": "OSError: [Errno 101] Network is unreachable", "ask-the-network": "done"}
    assert found.degraded["programs"] == found.degraded["system"]
    assert "offers no seccomp filter" in found.degraded["programs"]
    assert "files" in found.applied
    without = tried("reach-the-network", off="network", missing="seccomp", secret=tmp_path)
    assert without.came["reach-the-network"] == "done"


def test_so_does_a_user_without_any_privilege() -> None:
    secret, python = Path("/etc/passwd"), python_for_all()
    found = tried("reach-the-network", missing="seccomp", secret=secret, python=python, **AS_NOBODY)
    if found.applied.get("network") is None:
        assert "namespace was refused" in found.degraded["network"], (
            "this machine gives user namespaces to nobody, and it is told"
        )
    else:
        assert "unreachable" in found.came["reach-the-network"]


def test_a_machine_that_refuses_everything_serves_and_says_so(tmp_path: Path) -> None:
    """Each with its own reason; memory is limited everywhere."""
    missing = f"seccomp,unshare,{LANDLOCK}"
    found = tried("allocate", "reach-the-network", "read-a-secret", missing=missing, secret=Path("/etc/passwd"))
    assert found.applied.keys() - {"tasks"} == {"memory"}
    assert "no seccomp filter" in found.degraded["network"]
    assert "namespace was refused" in found.degraded["network"]
    assert "no Landlock" in found.degraded["files"]
    assert found.came["allocate"].startswith("MemoryError")
    assert (found.came["reach-the-network"], found.came["read-a-secret"]) == ("done", "done")
