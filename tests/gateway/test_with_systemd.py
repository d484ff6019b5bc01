"""The gateway under a service manager: sockets that it was given, ready when it answers, alive only while its loop turns."""

from __future__ import annotations

import asyncio
import socket
import stat
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from holdfast_agent.core.record import PipelineRecord
from holdfast_agent.edge import configuration
from holdfast_gateway.gateway import Gateway
from holdfast_shared.wire.release import Limits
from support.gateway_bench import (
    DEADLINE_S,
    PIPELINE,
    STAND_IN,
    GatewayBench,
    eventually,
    installed,
    running_gateway,
    write_record,
)
from support.systemd_side import Notified, notified, start_with_sockets

pytestmark = pytest.mark.slow
BEAT_US = 200_000


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    with notified(tmp_path) as found:
        monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
        monkeypatch.setenv("WATCHDOG_USEC", str(2 * BEAT_US))
        yield found


def recorded(tmp_path: Path, *, load: str = "ok", limits: Limits | None = None) -> GatewayBench:
    """A bench whose record says that 1.0.0 serves."""
    bench = GatewayBench(tmp_path)
    target = installed(bench.folder, "1.0.0", limits=limits, load=load)
    write_record(bench.folder, digits=PipelineRecord(current=target))
    return bench


def test_ready_is_said_when_a_request_is_answered_and_not_before(tmp_path: Path, systemd: Notified) -> None:
    """A unit that is ordered after it finds a gateway that answers. In the end it says that it stops."""
    bench = recorded(tmp_path, load="slow:700")
    bench.start()
    try:
        with bench.http() as http:
            assert http.get("/v2/health/ready")[0] == 503, "it listens, and still loads"
            assert "READY=1" not in systemd.heard
            assert http.infer()[0] == 200, "it waited for what is loaded"
            systemd.until("READY=1")
        assert systemd.until("WATCHDOG=1")
        assert "STATUS=serving digits 1.0.0" in systemd.heard
    finally:
        assert bench.stop() == 0
    systemd.until("STOPPING=1")


def test_a_release_that_cannot_load_does_not_hold_up_the_start(tmp_path: Path, systemd: Notified) -> None:
    """A gateway that is killed at its start deadline would serve nothing at all: it is ready, and says who is silent."""
    bench = recorded(tmp_path, load="fail:self-test-failed")
    bench.start()
    try:
        systemd.until("READY=1")
        assert "STATUS=serving nothing; no answer from digits" in systemd.heard
    finally:
        bench.stop()


def test_a_release_that_loads_and_loads_does_not_hold_it_up_for_ever(
    tmp_path: Path, systemd: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes meanwhile: it is time that tells."""
    monkeypatch.setenv("GATEWAY_READY_WAIT_S", "0.5")
    bench = recorded(tmp_path, load="slow:600000", limits=Limits(load_deadline_s=600))
    bench.start()
    try:
        systemd.until("READY=1")
        assert "STATUS=serving nothing; no answer from digits" in systemd.heard
    finally:
        bench.stop()


def test_without_a_record_it_is_ready_at_once(tmp_path: Path, systemd: Notified) -> None:
    with running_gateway(tmp_path):
        systemd.until("READY=1")


def test_a_loop_that_is_blocked_says_nothing_and_one_that_turns_says_it_is_alive(
    tmp_path: Path, systemd: Notified
) -> None:
    bench = GatewayBench(tmp_path)

    async def live() -> None:
        gateway = Gateway(configuration.load(bench._config), STAND_IN)
        running = asyncio.get_running_loop().create_task(gateway.run())
        for _ in range(3):
            await asyncio.to_thread(systemd.until, "WATCHDOG=1")
        systemd.drain()
        before = len(systemd.heard)
        time.sleep(5 * BEAT_US / 1_000_000)  # noqa: ASYNC251 - the very thing: nothing of the loop runs meanwhile
        systemd.drain()
        assert systemd.heard[before:] == []
        await asyncio.to_thread(systemd.until, "WATCHDOG=1")
        gateway.stop()
        await running

    asyncio.run(live())


def given_sockets(path: Path) -> tuple[socket.socket, socket.socket]:
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    unix.bind(str(path))
    for one in (tcp, unix):
        one.listen(64)
    return tcp, unix


def start(bench: GatewayBench, given: tuple[socket.socket, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.gateway_command", str(bench._config), *STAND_IN]
    with (tmp_path / "gateway.log").open("ab") as log:
        bench._process = start_with_sockets(command, given, ["gateway"] * len(given), log)


def ask(address: tuple[str, int]) -> int:
    connection = HTTPConnection(address[0], address[1], timeout=DEADLINE_S)
    try:
        connection.request("POST", "/v2/models/digits/infer", b'{"id": "1"}')
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_serves_on_the_sockets_that_systemd_opened_and_leaves_them_there(tmp_path: Path, systemd: Notified) -> None:
    """Also what was asked before it ran: nobody is refused while it is started anew."""
    bench = recorded(tmp_path)
    path = tmp_path / "holdfast-gateway.sock"
    tcp, unix = given_sockets(path)
    try:
        with tcp, unix, socket.socket(socket.AF_UNIX) as early:
            early.settimeout(DEADLINE_S)
            early.connect(str(path))
            early.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: d\r\n\r\n")
            start(bench, (tcp, unix), tmp_path)
            systemd.until("READY=1")
            assert bench.address == tcp.getsockname()
            assert bench._addresses()["unix"] == str(path)
            assert ask(bench.address) == 200
            assert early.recv(4096).startswith(b"HTTP/1.1 200")
            assert bench.stop() == 0
            assert stat.S_ISSOCK(path.stat().st_mode), "it is systemd's to remove"
            socket.create_connection(tcp.getsockname(), timeout=DEADLINE_S).close()  # still nobody is refused
    finally:
        bench.stop()


def test_one_that_is_killed_refuses_nobody_behind_systemds_socket(tmp_path: Path, systemd: Notified) -> None:
    """SIGKILL between two requests: the next waits for the restarted gateway and for its worker, and is answered."""
    bench = recorded(tmp_path, load="slow:1500", limits=Limits(deadline_ms=200, load_deadline_s=20))
    tcp, unix = given_sockets(tmp_path / "gateway.sock")
    try:
        with tcp, unix:
            start(bench, (tcp, unix), tmp_path)
            systemd.until("READY=1")
            assert bench._process is not None
            bench._process.kill()
            bench._process.wait(DEADLINE_S)
            waiting = HTTPConnection("127.0.0.1", tcp.getsockname()[1], timeout=DEADLINE_S)
            waiting.request("POST", f"/v2/models/{PIPELINE}/infer", b'{"do": {}}')
            start(bench, (tcp, unix), tmp_path)
            assert waiting.getresponse().status == 200
            waiting.close()
            eventually(lambda: bench.pid == (bench._process.pid if bench._process else 0), "it says where it listens")
    finally:
        bench.stop()


def test_a_socket_unit_that_is_open_to_other_machines_is_refused(tmp_path: Path) -> None:
    bench = recorded(tmp_path)
    with socket.socket() as wrong:
        wrong.bind(("0.0.0.0", 0))
        wrong.listen(8)
        start(bench, (wrong,), tmp_path)
    process, bench._process = bench._process, None
    assert process is not None
    assert process.wait(DEADLINE_S) != 0
    assert "0.0.0.0 can be reached from other machines" in bench.log
    assert not bench.folder.gateway_addresses.exists()
    assert list(bench.folder.run.iterdir()) == []
