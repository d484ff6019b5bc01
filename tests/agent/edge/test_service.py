"""Both protocols of a service manager, over their real sockets and environment."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge import service
from holdfast_agent.edge.service import ServiceManager
from support.systemd_side import Notified, notified, start_with_sockets

# Takes what was handed over, and says what it got, and what a child of it would find.
TAKER = """
import os, subprocess, sys
from holdfast_agent.edge import service
from holdfast_shared.errors import HoldfastError
try:
    found = service.handed_over("gateway")
except HoldfastError as refusal:
    sys.exit(str(refusal))
again = service.handed_over("gateway")
print([one.getsockname() for one in found], again, [name for name in os.environ if name.startswith("LISTEN_")])
look = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
print(subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, text=True).stdout)
for one in found:
    one.close()
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    with notified(tmp_path) as found:
        monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
        yield found


def test_each_word_is_said_and_a_status_only_when_it_changes(systemd: Notified) -> None:
    known = ServiceManager()
    known.ready()
    known.status("digits 1.0.0\nserves")
    known.status("digits 1.0.0 serves")
    known.status("x" * 1000)
    known.stopping()
    systemd.drain()
    assert systemd.heard == ["READY=1", "STATUS=digits 1.0.0 serves", "STATUS=" + "x" * 200, "STOPPING=1"]


def test_alive_is_said_at_half_of_what_systemd_waits_for(systemd: Notified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    known = ServiceManager()
    assert known.beat_s == 15.0
    for now_s in range(100, 146):
        known.alive(float(now_s))
    systemd.drain()
    assert systemd.heard == ["WATCHDOG=1"] * 4, "at 100, 115, 130 and 145 s, however often the loop turns"


@pytest.mark.parametrize(("usec", "process"), [("", ""), ("abc", ""), ("0", ""), ("1000000", "1")])
def test_nobody_watches_when_systemd_does_not_ask_us(
    usec: str, process: str, systemd: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if process:
        monkeypatch.setenv("WATCHDOG_PID", process)
    known = ServiceManager()
    known.alive(1.0)
    systemd.drain()
    assert (known.beat_s, systemd.heard) == (None, [])


def test_a_service_manager_that_is_away_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none.sock"))
    ServiceManager().ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    ServiceManager().ready()
    assert service.handed_over("gateway") == []


def test_an_abstract_socket_is_a_service_manager_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"holdfast-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        ServiceManager().ready()
        assert listening.recv(100) == b"READY=1"


def taken(tmp_path: Path, given: list[socket.socket], names: list[str]) -> tuple[int, str]:
    with (tmp_path / "out").open("wb") as log:
        process = start_with_sockets([sys.executable, "-c", TAKER], given, names, log)
    return process.wait(30), (tmp_path / "out").read_text()


def listening(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.bind(address)
    made.listen(8)
    return made


@pytest.mark.slow
def test_sockets_are_taken_by_name_once_and_no_child_gets_them(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0)) as tcp,
        listening(socket.AF_UNIX, path) as unix,
        listening(socket.AF_INET, ("127.0.0.1", 0)) as other,
    ):
        status, said = taken(tmp_path, [tcp, unix, other], ["gateway", "gateway", "other"])
        assert status == 0, said
        first, second = said.splitlines()[:2]
        assert first == f"{[tcp.getsockname(), path]} [] []"
        assert second == "[0, 1, 2, 3]", "3 is the listing's own"


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["open to others", "not listening"])
def test_a_socket_that_would_serve_other_machines_or_nobody_is_refused(wrong: str, tmp_path: Path) -> None:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with made:
        made.bind(("0.0.0.0" if wrong == "open to others" else "127.0.0.1", 0))
        if wrong == "open to others":
            made.listen(8)
        status, said = taken(tmp_path, [made], ["gateway"])
    assert status == 1
    assert ("0.0.0.0 can be reached from other machines" if wrong == "open to others" else "does not listen") in said


def test_what_is_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert service.handed_over("gateway") == []
    assert "LISTEN_FDS" not in os.environ
