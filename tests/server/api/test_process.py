"""`holdfast-server` as a process: what it needs to start, that it carries on after any end, and that it ends in order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3

from holdfast_shared import __version__
from holdfast_shared.signing import PrivateKey
from support.mosquitto import running_mosquitto
from support.reporting import eventually
from support.running_server import (
    SAMPLE,
    Client,
    database_url,
    membership,
    program,
    provision,
    server_process,
)

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("holdfast-server"), *map(str, words)], capture_output=True, text=True, timeout=60)


def start_a_rollout(client: Client) -> Any:
    """Published, enrolled, planned and started, as an operator does it."""
    client.holdfast("publish", SAMPLE, key="mira")
    for number in range(3):
        assert client.ask("POST", "memberships", membership(f"dev-{number}")).status == 201
    return client.holdfast("rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--start")


# ---------------------------------------------------------------- to start
def test_help_and_version() -> None:
    assert run("--version").stdout.strip() == f"holdfast-server, version {__version__}"
    assert "--director-key director.pem" in run("--help").stdout
    shown = run("run", "--help").stdout
    for option in ("--data", "--authorities", "--director-key", "--listen", "--mqtt", "--database", "--shadow-first"):
        assert option in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--authorities": "nowhere.json"}, "without it nothing can be trusted"),
        ({"--director-key": "anna.pem"}, "provision an authorities.json that lists this one under `directors`"),
        ({"--director-key": "authorities.json"}, "not a PEM private key"),
        ({"--listen": "0.0.0.0:0"}, "0.0.0.0 can be reached from elsewhere"),
        ({"--listen": "example.org:80"}, "is no address"),
        ({"--listen": "127.0.0.1:99999"}, "is no port"),
        ({"--mqtt": "http://127.0.0.1:1883"}, "Next: "),
        ({"--shadow-first": "stage production"}, "--shadow-first: "),
        ({"--database": "mysql://127.0.0.1/x"}, "--database: "),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_it_refuses_to_start_and_says_what_to_do(tmp_path: Path, change: dict[str, str], words: str) -> None:
    given: dict[str, str | Path] = {
        "--data": tmp_path / "data", "--authorities": provision(tmp_path),
        "--director-key": tmp_path / "director.pem", "--listen": "127.0.0.1:0",
    }  # fmt: skip
    files: dict[str, str | Path] = {
        name: tmp_path / value if (tmp_path / value).exists() else value for name, value in change.items()
    }
    done = run("run", *(word for pair in (given | files).items() for word in pair))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Next: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "PRIVATE KEY" not in done.stderr
    assert not (tmp_path / "data" / "server.json").exists()


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(
            "run", "--data", tmp_path / "data", "--authorities", provision(tmp_path),
            "--director-key", tmp_path / "director.pem", "--listen", f"127.0.0.1:{taken.getsockname()[1]}",
        )  # fmt: skip
    assert done.returncode == 2
    assert "--listen: cannot listen on" in done.stderr


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with server_process(tmp_path) as first:
        before = (first.data / "server.json").read_bytes()
        done = run(
            "run", "--data", first.data, "--authorities", tmp_path / "authorities.json",
            "--director-key", tmp_path / "director.pem", "--listen", "127.0.0.1:0",
        )  # fmt: skip
        assert done.returncode == 2
        assert "another server works on" in done.stderr
        assert (first.data / "server.json").read_bytes() == before
        assert first.client is not None
        assert first.client.get("status").status == 200


# ---------------------------------------------------------------- to carry on
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_restart_carries_on(request: pytest.FixtureRequest, tmp_path: Path, backend: str, how: int) -> None:
    """The rollout, its document and the blobs are there; and nothing is issued anew."""
    postgres = request.getfixturevalue("postgres_url") if backend == "postgresql" else None
    with database_url(backend, tmp_path, postgres) as url:
        text = url.render_as_string(hide_password=False) if backend == "postgresql" else None
        with server_process(tmp_path, database=text) as process:
            assert process.client is not None
            rollout = start_a_rollout(process.client)
            before = process.client.get("assignments/region/eu-west/iris").data
            blob = process.client.get("releases/iris/1.0.0").json["manifest"]["self_test"]["blob"]["digest"]
            process.stop(how=how)
            client = process.start()
            assert client.get(f"rollouts/{rollout['id']}").json["state"] == "running"
            assert client.get("assignments/region/eu-west/iris").data == before
            assert client.get(f"blobs/{blob}").data == (SAMPLE / "golden.json").read_bytes()
            assert client.holdfast("publish", SAMPLE, key="mira")["release"]["result"] == "unchanged"
            client.holdfast("rollout", "abort", rollout["id"])


def test_commands_come_by_the_broker_too_and_a_new_region_gets_its_document(tmp_path: Path) -> None:
    with running_mosquitto() as broker, server_process(tmp_path, mqtt=broker.url) as process:
        client = process.client
        assert client is not None
        eventually(lambda: client.get("status").json["broker_connected"])
        start_a_rollout(client)
        refused = client.refused("rollback", "iris", "9.9.9", "--reason", "why not", "--mqtt", broker.url)
        assert (refused.code, refused.field) == ("not-found", "version")
        client.ask("POST", "memberships", membership("far", "ap-south"))
        eventually(lambda: client.get("assignments/region/ap-south").json["pipelines"])


# ---------------------------------------------------------------- to end
def test_it_ends_in_order_with_open_pages(tmp_path: Path) -> None:
    """Within its deadline, with exit code 0, and its address is taken back."""
    with server_process(tmp_path) as process:
        assert process.client is not None
        pool = urllib3.PoolManager(retries=False, timeout=20)
        page = pool.request("GET", f"{process.client.address}/api/v1/events", preload_content=False)
        assert page.status == 200
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 10
        page.close()
        pool.clear()
    assert not (process.data / "server.json").exists()
    assert process.log().splitlines()[-1].endswith("stopped")
    assert "Traceback" not in process.log()


def test_what_is_being_answered_at_the_end_is_answered(tmp_path: Path) -> None:
    with server_process(tmp_path) as process:
        client = process.client
        assert client is not None
        answers: list[int] = []
        enough = threading.Event()

        def ask() -> None:
            for number in range(10_000):
                try:
                    answers.append(client.ask("POST", "memberships", membership(f"dev-{number}")).status)
                except urllib3.exceptions.HTTPError as error:
                    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
                    answers.append(0 if refused or "Connection aborted" in str(error) else -1)
                    return
                if number == 20:
                    enough.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert enough.wait(30)
        assert process.stop() == 0
        thread.join(30)
        stored = answers.count(201)
        assert answers[-1] == 0
        assert set(answers[:-1]) == {201}
        again = process.start()
        assert again.get("status").json["devices"] == stored


def test_the_log_is_lines_and_holds_no_secret(tmp_path: Path) -> None:
    with server_process(tmp_path) as process:
        assert process.client is not None
        process.client.get("devices/%0anew%20line%1b[31m")
        start_a_rollout(process.client)
        process.stop()
    for line in process.log().splitlines():
        assert line[:4].isdigit(), line
        assert line.isprintable()
    for key in tmp_path.glob("*.pem"):
        PrivateKey.from_pem(key.read_bytes())
        assert key.read_text().splitlines()[1] not in process.log()
    assert json.loads((tmp_path / "authorities.json").read_bytes())["fleet"] in process.log()


def test_a_killed_server_leaves_nothing_half_received(tmp_path: Path) -> None:
    """What was being received when it was killed is gone at the next start."""
    with server_process(tmp_path) as process:
        process.stop(how=signal.SIGKILL)
        leftover = process.data / "blobs" / "partial" / "leftover"
        leftover.write_bytes(b"half of something")
        process.start()
        assert not leftover.exists()
