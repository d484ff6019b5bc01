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


class Postgres:
    """An empty database at `url`, which may be stopped and started again. It refuses to run as root: root becomes `postgres`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._control = need_program("pg_ctl", "postgresql")
        self.url = f"postgresql+psycopg://holdfast@127.0.0.1:{self._port}/postgres"
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        self._ask("-o", "--auth=trust --username=holdfast --encoding=UTF8 --no-sync", "init")

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._ask("-w", "-t", str(START_DEADLINE_S), "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        self._ask("-m", "immediate", "-w", "stop")

    def _ask(self, *words: str) -> None:
        become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        _run([*become, str(self._control), "-D", str(self._folder / "data"), *words])


@contextlib.contextmanager
def started_postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    try:
        postgres = Postgres(folder)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database."""
    with started_postgres() as postgres:
        yield postgres.url


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S * 2, cwd="/", check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
