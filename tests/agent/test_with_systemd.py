"""The agent under a service manager: ready when it has resumed, alive only while its loop turns, asked by one line at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.core.record import Record
from holdfast_agent.core.step import first_record
from holdfast_agent.edge import clock, local_control
from holdfast_agent.edge.assembly import ReleasesOnDisk
from holdfast_agent.edge.broker import Received
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.local_control import Answer, LocalControl, Rollback, RollbackRequested
from holdfast_agent.edge.loop import Inbox, Loop
from holdfast_agent.edge.outbox import Outbox
from holdfast_agent.edge.spool import Spool
from holdfast_gateway.control import ToGateway
from holdfast_shared import topics
from holdfast_shared.errors import Conflict, Missing
from support import playbook
from support.device_bench import DeviceBench
from support.mosquitto import running_mosquitto
from support.playbook import target
from support.systemd_side import Notified, notified

BEAT_S = 0.1
WITHIN_S = 20.0
ASKED = Rollback(pipeline="p", target=target("2"), reason="it flickers")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    with notified(tmp_path) as found:
        monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(2 * BEAT_S * 1_000_000)))
        yield found


@pytest.mark.slow
def test_ready_is_said_when_the_record_was_resumed_and_alive_from_then_on(tmp_path: Path, systemd: Notified) -> None:
    """The start that is told of is in the record by then; its status is one line; in the end it says that it stops."""
    with running_mosquitto() as broker:
        device = DeviceBench(tmp_path, broker)
        try:
            device.start_agent()
            systemd.until("READY=1")
            assert "WATCHDOG=1" not in systemd.heard, "nothing counts before"
            systemd.until("STATUS=nothing assigned yet; broker connected")
            for _ in range(3):
                systemd.until("WATCHDOG=1")
            refused = subprocess.run(
                [sys.executable, "-m", "holdfast_agent", "run", "--config", str(device.path)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert refused.returncode == 2
            systemd.drain()
            assert systemd.heard.count("READY=1") == 1, "one that refuses to start is not ready"
            assert device.terminate("agent") == 0
            systemd.until("STOPPING=1")
        finally:
            device.close()


@dataclasses.dataclass
class Stuck:
    """A disk on which a save of the record takes as long as the test wants."""

    free: threading.Event = dataclasses.field(default_factory=threading.Event)
    saves: int = 0

    def save(self, saved: Record) -> None:  # noqa: ARG002 - RecordStore's signature
        self.saves += 1
        self.free.wait(WITHIN_S)


class Away:
    """No gateway, no server, no broker: what is said to them is lost."""

    def say(self, message: ToGateway) -> None: ...

    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str,
        *,
        urgent: bool = False,
        from_disk: bool = False,
    ) -> None: ...

    def stop(self) -> None: ...

    def publish(self, topic: str, payload: bytes, token: int) -> bool:  # noqa: ARG002 - Publisher's signature
        return False


def run_loop(folder: StateFolder, records: Stuck, inbox: Inbox) -> None:
    with contextlib.closing(Spool(folder.spool, 100)) as spool:
        loop = Loop(
            inbox=inbox,
            records=records,
            data_plane=Away(),
            fetcher=Away(),
            outbox=Outbox(spool, Away(), fleet="f", device="d-1", key=playbook.DIRECTOR),
            disk=ReleasesOnDisk(folder),
            clock=clock.now,
            fleet="f",
        )
        loop.run(playbook.own(), first_record("0" * 16))


def test_a_loop_that_is_blocked_says_nothing_and_one_that_turns_says_it_is_alive(
    tmp_path: Path, systemd: Notified
) -> None:
    """Before it has resumed it is not ready either: the first save is stuck, and nothing at all is said."""
    stuck, inbox = Stuck(), Inbox()
    running = threading.Thread(target=run_loop, args=(StateFolder(tmp_path), stuck, inbox))
    running.start()
    try:
        assert systemd.silent_for("", 5 * BEAT_S)
        stuck.free.set()
        systemd.until("READY=1")
        for _ in range(3):
            systemd.until("WATCHDOG=1")
        stuck.free.clear()
        document = playbook.signed(playbook.assignment(playbook.rule("1"), seq=1))
        inbox.emit(Received(topics.region_assignment("f", "eu", playbook.PIPELINE), document))
        due = time.monotonic() + WITHIN_S
        while stuck.saves < 2:
            assert time.monotonic() < due
            time.sleep(0.005)
        systemd.drain()
        assert systemd.silent_for("WATCHDOG=1", 5 * BEAT_S)
        stuck.free.set()
        systemd.until("WATCHDOG=1")
    finally:
        stuck.free.set()
        inbox.stop()
        running.join(WITHIN_S)
    systemd.until("STOPPING=1")


class Asked:
    """A loop's end of the local control: it answers what it is told to."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.path = folder / "run" / "agent.sock"
        self.requests: list[Rollback] = []
        self._answer = answer
        self.control = LocalControl(self.path, self._emit)

    def __enter__(self) -> Asked:
        self.control.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.stop()

    def say(self, line: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WITHIN_S)
            connection.connect(str(self.path))
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1 << 16)

    def _emit(self, asked: RollbackRequested) -> None:
        self.requests.append(asked.request)
        asked.answer(self._answer)


def test_one_line_there_and_one_back(tmp_path: Path) -> None:
    """Only its own user may ask; nothing is left when it stops, and the next one may listen there, also after a kill."""
    for _ in range(2):
        with Asked(tmp_path, Answer(serves="1.1.0")) as agent:
            assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
            assert local_control.listens(agent.path)
            assert local_control.ask(agent.path, ASKED) == Answer(serves="1.1.0")
            assert agent.requests == [ASKED]
        assert not agent.path.exists()
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(agent.path))
        left.close()
        assert not local_control.listens(agent.path)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"pipeline": "p"}\n',
        b"\xff\xfe\n",
        b"x" * 40_000,
        b'{"pipeline": "P!", "target": 3}\n',
    ],
)
def test_what_is_no_request_is_refused_and_reaches_no_loop(line: bytes, tmp_path: Path) -> None:
    with Asked(tmp_path, Answer()) as agent:
        try:
            assert b"does not understand" in agent.say(line)
        except (BrokenPipeError, ConnectionResetError):
            assert len(line) > local_control.LINE_BYTES_MAX, "it reads no further than its limit"
        assert agent.requests == []
        assert local_control.ask(agent.path, ASKED) == Answer(), "and the next one is served"


def test_somebody_who_asks_nothing_holds_up_nobody_for_long(tmp_path: Path) -> None:
    with Asked(tmp_path, Answer()) as agent, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(agent.path))
        began = time.monotonic()
        assert local_control.ask(agent.path, ASKED) == Answer()
        assert time.monotonic() - began < local_control.ASKING_S + 5


def test_nobody_there_and_nobody_answering_are_two_errors(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="none answers"):
        local_control.ask(tmp_path / "agent.sock", ASKED)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "agent.sock"))
        mute.listen(1)
        gone = threading.Thread(target=hang_up, args=(mute,))
        gone.start()
        with pytest.raises(Conflict, match="did not answer"):
            local_control.ask(tmp_path / "agent.sock", ASKED)
        gone.join(WITHIN_S)


def hang_up(listening: socket.socket) -> None:
    listening.accept()[0].close()


def test_an_agent_runs_on_where_nobody_can_ask_it(tmp_path: Path) -> None:
    """A folder whose path is too long for a socket, say: the device is kept in step all the same."""
    control = LocalControl(tmp_path / ("x" * 100) / "agent.sock", lambda _: None)
    control.start()
    control.stop()
