"""The fetch process: one line and one event for each fetch, nothing left behind, nothing half there, whoever is killed when."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from holdfast_agent.edge import blobs, fetching
from holdfast_agent.edge.fetching import FetchEnded, FetchProcess
from holdfast_agent.edge.request import SILENCE_S
from holdfast_agent.fetch.outcome import EXIT_STATUS, Outcome
from support.hostile_server import HostileServer, head, honest, running_hostile_server, silent, status, trickle
from support.installed_release import Published
from support.published import Making, provisioned, publish

pytestmark = pytest.mark.slow
WITHIN_S = 30.0
GOOD = publish()
WEIGHTS_PATH = f"/api/v1/blobs/{GOOD.weights}"
# A parent that starts a fetch, says the child's number, and waits to be killed.
PARENT = """
import sys, time
from pathlib import Path
from holdfast_agent.edge.fetching import FetchProcess
fetch = FetchProcess(Path(sys.argv[1]), print)
fetch.start(sys.argv[2], "1.0.0", "digits")
while fetch._child._process is None:
    time.sleep(0.01)
print(fetch._child._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running_hostile_server() as running:
        serve(running, GOOD)
        yield running


def serve(server: HostileServer, published: Published) -> None:
    for digest, envelope in published.manifests.items():
        server.on(f"/api/v1/manifests/{digest}", honest(envelope))
    for digest, content in published.blobs.items():
        server.on(f"/api/v1/blobs/{digest}", honest(content))


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.01)


def command(configuration: Path, published: Published = GOOD) -> list[str]:
    return [
        *(sys.executable, "-m", "holdfast_agent.fetch", "--config", str(configuration)),
        *("--pipeline", "digits", "--version", published.release.version, "--digest", published.digest),
    ]


def test_a_target_is_fetched_and_said_once(server: HostileServer, tmp_path: Path) -> None:
    configuration, folder = provisioned(tmp_path, server.url)
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    fetch = FetchProcess(configuration, ended.put)
    fetch.start(GOOD.digest, "1.0.0", "digits")
    assert ended.get(timeout=WITHIN_S) == FetchEnded(GOOD.digest, ok=True, code="", detail="", pipeline="digits")
    assert blobs.damaged(folder, GOOD.digest) == []
    fetch.stop()
    assert ended.empty()


def test_a_failure_comes_with_its_code_and_what_the_server_asked_for(server: HostileServer, tmp_path: Path) -> None:
    server.on(f"/api/v1/manifests/{GOOD.digest}", status(503, Retry_After="7"))
    configuration, _ = provisioned(tmp_path, server.url)
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    FetchProcess(configuration, ended.put).start(GOOD.digest, "1.0.0", "digits")
    found = ended.get(timeout=WITHIN_S)
    assert (found.ok, found.code, found.retry_after_s) == (False, "fetch-refused", 7)
    assert "503" in found.detail


def test_the_command_says_one_line_and_exits_with_the_codes_status(server: HostileServer, tmp_path: Path) -> None:
    configuration, _ = provisioned(tmp_path, server.url)
    good = subprocess.run(command(configuration), capture_output=True, timeout=WITHIN_S, stdin=subprocess.DEVNULL)
    assert (good.returncode, json.loads(good.stdout)["ok"]) == (0, True)
    (tmp_path / "authorities.json").unlink()
    bad = subprocess.run(command(configuration), capture_output=True, timeout=WITHIN_S, stdin=subprocess.DEVNULL)
    answer = json.loads(bad.stdout)
    assert bad.stdout.count(b"\n") == 1
    assert (answer["ok"], EXIT_STATUS[answer["code"]]) == (False, bad.returncode)
    assert "authorities.json" in answer["detail"]
    assert b"Traceback" not in bad.stderr


def test_a_stopped_fetch_is_gone_and_says_nothing(server: HostileServer, tmp_path: Path) -> None:
    server.on(WEIGHTS_PATH, silent)
    configuration, folder = provisioned(tmp_path, server.url)
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    fetch = FetchProcess(configuration, ended.put)
    fetch.start(GOOD.digest, "1.0.0", "digits")
    eventually(lambda: bool(server.asked(WEIGHTS_PATH)))
    fetch.stop()
    fetch.stop()
    assert not [child for child in psutil.Process().children() if child.is_running()]
    assert ended.empty()
    with blobs.exclusive(folder, wait_s=0) as free:
        assert free, "a killed fetch holds nothing"


def test_a_new_target_ends_the_one_before(server: HostileServer, tmp_path: Path) -> None:
    newer = publish("1.1.0")
    serve(server, newer)
    server.on(WEIGHTS_PATH, silent)
    configuration, _ = provisioned(tmp_path, server.url)
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    fetch = FetchProcess(configuration, ended.put)
    fetch.start(GOOD.digest, "1.0.0", "digits")
    eventually(lambda: bool(server.asked(WEIGHTS_PATH)))
    fetch.start(newer.digest, "1.1.0", "digits")
    found = ended.get(timeout=WITHIN_S)
    assert (found.target, found.ok) == (newer.digest, True)
    assert ended.empty()


def test_a_trickle_is_ended_by_the_deadline(server: HostileServer, tmp_path: Path) -> None:
    server.on(f"/api/v1/manifests/{GOOD.digest}", trickle(head(200, X="y" * 60_000), 0.02))
    configuration, _ = provisioned(tmp_path, server.url)
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    FetchProcess(configuration, ended.put, deadline_s=1.0).start(GOOD.digest, "1.0.0", "digits")
    assert ended.get(timeout=WITHIN_S).code == "fetch-too-slow"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import time; time.sleep(600)", "fetch-too-slow"),
        ("print('x' * 100_000, end='', flush=True); import time; time.sleep(600)", "fetch-damaged"),
        ("print('no JSON')", "fetch-damaged"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "fetch-damaged"),
    ],
    ids=["hangs", "says too much", "says nonsense", "crashes"],
)
def test_whatever_the_child_does_is_one_event(program: str, code: str) -> None:
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    child = fetching._Child([sys.executable, "-c", program], 1.5, ended.put)
    assert ended.get(timeout=WITHIN_S).code == code
    assert child._process is not None
    assert child._process.returncode is not None
    child.stop()


def test_a_child_that_cannot_be_started_is_an_event_too() -> None:
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    fetching._Child(["/nonexistent/python"], 5.0, ended.put)
    assert "cannot be run" in ended.get(timeout=WITHIN_S).detail


def test_the_child_dies_with_its_parent(server: HostileServer, tmp_path: Path) -> None:
    """The parent is killed with SIGKILL while its child waits for a silent server: the child ends by itself."""
    server.on(WEIGHTS_PATH, silent)
    configuration, _ = provisioned(tmp_path, server.url)
    arguments = [sys.executable, "-c", PARENT, str(configuration), GOOD.digest]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        eventually(lambda: bool(server.asked(WEIGHTS_PATH)))
        assert child.is_running()
        parent.kill()
    psutil.wait_procs([child], timeout=SILENCE_S / 3)  # well before the silence would end it
    assert not child.is_running()


def test_killed_at_any_moment_nothing_that_a_manifest_names_is_incomplete(
    server: HostileServer, tmp_path: Path
) -> None:
    """SIGKILL at many moments of a fetch, each continued by the next: what is named is there, and it gets done."""
    large = publish("2.0.0", Making(size_bytes=6_000_000))
    serve(server, large)
    chance = random.Random(11)
    killed = 0
    while killed < 12:  # each turn is a whole fetch; on a quick machine some are not caught at all
        configuration, folder = provisioned(tmp_path, server.url)
        while not folder.manifest(large.digest).exists():
            with subprocess.Popen(
                command(configuration, large),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as child:
                asked = len(server.requests)
                eventually(lambda: len(server.requests) > asked or child.poll() is not None)  # noqa: B023 - called in this turn
                time.sleep(chance.uniform(0, 0.06))  # a moment of the fetch, not a wait for something
                if child.poll() is None:
                    os.kill(child.pid, signal.SIGKILL)
                    killed += 1
            for manifest in folder.manifests.iterdir() if folder.manifests.exists() else ():
                if blobs.release_of(folder, f"sha256:{manifest.name}") is not None:
                    assert blobs.damaged(folder, f"sha256:{manifest.name}") == []
            for found in folder.blobs.iterdir() if folder.blobs.exists() else ():
                digest = f"sha256:{found.name}"
                assert digest in large.blobs, "a file that nobody named"
                assert blobs.blob_verifies(folder, digest, len(large.blobs[digest]))
        assert blobs.damaged(folder, large.digest) == []
        blobs.collect_garbage(folder, set())
