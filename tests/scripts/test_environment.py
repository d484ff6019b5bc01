"""What the scripts do on a machine that lacks something: they say exactly what to run, and end with 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ENVIRONMENT = (Path(__file__).parents[2] / "scripts" / "environment.sh").read_text()
NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may install nothing")


def run(call: str, folder: Path, *programs: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """`call` after environment.sh, on a machine with these programs alone: by name, each as the real machine has it."""
    folder.mkdir()
    for program in ("basename", "id", "sed", *programs):
        found = shutil.which(program)
        assert found is not None, program
        (folder / program).symlink_to(found)
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "-c", f"set -euo pipefail\n{ENVIRONMENT}\n{call}", "scripts/test"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        env={"PATH": str(folder)},
        user=user,
        group=user,
    )


@pytest.fixture
def bin_folder() -> Iterator[Path]:
    """Not under pytest's own folder, which is closed to others: nobody must be able to look into it."""
    with tempfile.TemporaryDirectory(prefix="holdfast-scripts-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made) / "bin"


@as_root
def test_without_the_right_to_install_it_prints_the_exact_command(bin_folder: Path) -> None:
    """No sudo on this machine, and the package manager is there."""
    (bin_folder.parent / "apt-get").write_text("#!/bin/sh\nexit 99\n")
    (bin_folder.parent / "apt-get").chmod(0o755)
    call = f'PATH="$PATH:{bin_folder.parent}"; need_program no-such-broker mosquitto'
    done = run(call, bin_folder, user=NOBODY)
    assert done.returncode == 2
    command = "sudo apt-get install -y --no-install-recommends mosquitto"
    assert done.stderr == f"test: no-such-broker is missing. Run: {command}\n"


def test_without_a_package_manager_it_names_what_is_missing(bin_folder: Path) -> None:
    done = run("need_program no-such-broker mosquitto", bin_folder)
    assert done.returncode == 2
    assert done.stderr.startswith("test: no-such-broker is missing.")
    assert "mosquitto" in done.stderr


def test_a_program_that_is_there_costs_nothing(bin_folder: Path) -> None:
    done = run("need_program id coreutils", bin_folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_python_that_will_do_it_says_what_to_install(bin_folder: Path) -> None:
    done = run("choose_python", bin_folder)
    assert done.returncode == 2
    assert "apt-get install -y python3 python3-venv" in done.stderr


def test_the_python_that_is_named_is_chosen(bin_folder: Path) -> None:
    python = shutil.which("python3")
    done = run(f"HOLDFAST_PYTHON={python} choose_python", bin_folder)
    assert (done.returncode, done.stdout.strip()) == (0, python)
