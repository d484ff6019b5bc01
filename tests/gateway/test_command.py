"""`holdfast-gateway` as a person and a service manager meet it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast_shared import __version__
from support.descriptors import opened_by
from support.gateway_bench import DEADLINE_S, GatewayBench, alive, eventually, installed
from support.gateway_traffic import Load

MODULE = [sys.executable, "-m", "holdfast_gateway"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODULE, *arguments], capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.mark.slow
def test_it_says_its_version_and_how_to_use_it() -> None:
    assert command("--version").stdout == f"holdfast-gateway {__version__}\n"
    assert "run" in command("--help").stdout
    assert "--config FILE" in command("run", "--help").stdout
    assert command().returncode == 2


@pytest.mark.slow
def test_a_bad_configuration_is_refused_with_every_fault_at_once(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[device]\nid = "A B"\n[gateway]\nlisten = "0.0.0.0:80"\nconnections_max = 0\n[cloud]\n')
    refused = command("run", "--config", str(path))
    assert refused.returncode == 2
    for fault in ("[cloud]", "[device] id", "[device] fleet is missing", "[gateway] listen", "connections_max"):
        assert fault in refused.stderr
    assert "Traceback" not in refused.stderr
    missing = command("run", "--config", str(tmp_path / "none.toml"))
    assert missing.returncode == 2
    assert "cannot read" in missing.stderr


@pytest.mark.slow
def test_a_second_gateway_is_refused_and_disturbs_nothing(bench: GatewayBench) -> None:
    agent = bench.agent()
    agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
    refused = command("run", "--config", str(bench._config))
    assert refused.returncode == 2
    assert "running already" in refused.stderr
    assert bench.pid
    with bench.http() as http:
        assert http.infer()[0] == 200
    assert agent.windows(), "its agent is still connected"
    assert "another agent" not in bench.log


@pytest.mark.slow
def test_what_a_killed_gateway_left_to_a_child_is_waited_for(tmp_path: Path) -> None:
    """One that is killed between fork and exec of a worker lives on in that child for a moment, with all that it held."""
    bench = GatewayBench(tmp_path)
    bench.folder.run.mkdir(parents=True)
    left = os.open(bench.folder.run, os.O_RDONLY)
    fcntl.flock(left, fcntl.LOCK_EX)
    starting = threading.Thread(target=bench.start)
    starting.start()
    try:
        eventually(lambda: bench._process and bench.folder.run in opened_by(bench._process.pid), "it wants the folder")
        assert not bench.folder.control_socket.exists()
    finally:
        os.close(left)
        starting.join()
        assert bench.stop() == 0


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bench = GatewayBench(tmp_path)
        text = bench._config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        bench._config.write_text(text)
        refused = command("run", "--config", str(bench._config))
    assert refused.returncode == 2
    assert "cannot serve" in refused.stderr
    assert not bench.folder.gateway_addresses.exists()


@pytest.mark.slow
def test_its_sockets_are_for_those_who_may(bench: GatewayBench) -> None:
    assert stat.S_IMODE(bench.folder.gateway_socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(bench.folder.control_socket.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(DEADLINE_S)
        peer.connect(str(bench.folder.gateway_socket))
        peer.sendall(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way_and_leaves_nothing(bench: GatewayBench) -> None:
    agent, target = bench.agent(), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(target))
    worker = agent.until_state(target, "ready").worker_pid
    with Load(bench, 3, all_="slow:300") as load:
        load.until_answered_by("1.0.0", 3)
        assert bench.stop() == 0
    assert [status for status, _ in load.answers if status != 200] == []
    assert len(load.faults) == 3  # the next request of each finds nobody; none was cut off in its answer
    assert all("Refused" in fault or "RemoteDisconnected" in fault or "Reset" in fault for fault in load.faults)
    assert not alive(worker)
    assert not bench.folder.gateway_addresses.exists()
    assert not bench.folder.control_socket.exists()
    bench.start()


@pytest.mark.slow
def test_a_worker_that_will_not_end_is_killed_at_sigterm(bench: GatewayBench) -> None:
    agent, target = bench.agent(), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(target))
    worker = agent.until_state(target, "ready").worker_pid
    os.kill(worker, signal.SIGSTOP)
    assert bench.stop() == 0
    assert not alive(worker)
    bench.start()


@pytest.mark.slow
def test_it_imports_nothing_that_a_small_device_does_not_have_room_for() -> None:
    code = "import holdfast_gateway.main, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    unwanted = {"numpy", "onnxruntime", "tuf", "paho", "cryptography", "sqlite3", "urllib3", "email", "http.client"}
    assert unwanted & set(loaded.stdout.split()) == set()
