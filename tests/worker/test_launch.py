"""What an environment runs before its worker begins finds itself shut in already: a `.pth` file runs a stranger's lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast_worker.isolation import landlock, launch, seccomp

HOSTILE = """
import json, os, socket, sys
found = {"first": "holdfast_worker" not in sys.modules, "variable": os.environ.get("OMP_WAIT_POLICY", "")}
def attempt(name, what):
    try:
        found[name] = str(what())
    except OSError as error:
        found[name] = type(error).__name__
attempt("socket", lambda: socket.socket().type.name)
attempt("secret", lambda: open(os.environ["SECRET"]).read())
attempt("write", lambda: open(os.environ["SECRET"] + ".new", "w").close())
attempt("program", lambda: os.spawnv(os.P_WAIT, "/bin/true", ["/bin/true"]))
print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("environments") / "built"
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", "--symlinks", str(root)], check=True)
    packages = next(root.glob("lib/python*/site-packages"))
    (packages / "hostile.py").write_text(HOSTILE)
    (packages / "hostile.pth").write_text("import hostile\n")
    return root


def said(environment: Path, tmp_path: Path, *launched: str) -> dict[str, str | bool]:
    """By its `.pth` file, before the program that was asked for runs."""
    (tmp_path / "secret").write_text("a key")
    command: Sequence[str] = (*launched, str(environment / "bin" / "python"), "-I", "-B", "-c", "print('began')")
    done = subprocess.run(
        command, capture_output=True, text=True, env={"SECRET": str(tmp_path / "secret")}, check=False
    )
    hostile, _, began = done.stdout.partition("\n")
    assert began == "began\n", done.stderr
    found: dict[str, str | bool] = json.loads(hostile)
    return found


def ordered(environment: Path, *off: str) -> tuple[str, ...]:
    order = launch.order(root=environment, reads=(), off=off, tasks_max=0, variables={"OMP_WAIT_POLICY": "passive"})
    return (sys.executable, "-I", "-m", "holdfast_worker.isolation.launch", order)


def test_without_it_a_strangers_lines_have_the_whole_device(environment: Path, tmp_path: Path) -> None:
    found = said(environment, tmp_path)
    assert (found["socket"], found["secret"], found["write"]) == ("SOCK_STREAM", "a key", "None")


def test_a_strangers_lines_find_neither_network_nor_files_nor_programs(environment: Path, tmp_path: Path) -> None:
    if seccomp.why_not() or not landlock.version():
        pytest.skip("this kernel offers no seccomp filter, or no Landlock")
    found = said(environment, tmp_path, *ordered(environment))
    assert found == {
        "first": True,
        "variable": "passive",
        "socket": "PermissionError",
        "secret": "PermissionError",
        "write": "PermissionError",
        "program": "127",
    }
    assert not (tmp_path / "secret.new").exists()


def test_what_is_turned_off_is_left_alone(environment: Path, tmp_path: Path) -> None:
    found = said(environment, tmp_path, *ordered(environment, "files", "network"))
    assert (found["socket"], found["secret"]) == ("SOCK_STREAM", "a key")
