"""A real PostgreSQL of the tests' own: a private folder, a free port, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demonstration.processes import free_port
from support.services import need_program

START_DEADLINE_S = 60


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database. PostgreSQL refuses to run as root, so root becomes `postgres` for it."""
    control = need_program("pg_ctl", "postgresql")
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    try:
        if become:
            shutil.chown(folder, "postgres", "postgres")
        data = folder / "data"
        _run(
            [
                *become,
                str(control),
                "-D",
                str(data),
                "-o",
                "--auth=trust --username=holdfast --encoding=UTF8 --no-sync",
                "init",
            ]
        )
        port = free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run(
            [
                *become,
                str(control),
                "-D",
                str(data),
                "-w",
                "-t",
                str(START_DEADLINE_S),
                "-l",
                str(folder / "log"),
                "-o",
                options,
                "start",
            ]
        )
        try:
            yield f"postgresql+psycopg://holdfast@127.0.0.1:{port}/postgres"
        finally:
            _run([*become, str(control), "-D", str(data), "-m", "immediate", "-w", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S * 2, cwd="/", check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
