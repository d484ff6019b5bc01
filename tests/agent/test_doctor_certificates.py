"""What `doctor` makes of certificates: real ones, shown by a server that speaks TLS."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.commands import certificate
from holdfast_agent.commands.told import Finding
from support.tls_front import HOST, Authority, running_tls_front

SERVER_HERE = "http://127.0.0.1:8080"


@pytest.fixture
def port() -> Iterator[int]:
    """Something that listens, plain."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.path))
    return made


def found(broker: str = "mqtt://127.0.0.1", server: str = SERVER_HERE) -> Finding:
    (one,) = certificate.certificates(broker, server)
    assert one.check == "certificate"
    assert bool(one.do) == (one.state != "ok")
    return one


def test_one_that_is_good_says_for_how_long(authority: Authority, port: int) -> None:
    with running_tls_front(authority.certificate(days_to=90), port) as secured:
        for said in (found(broker=f"mqtts://{HOST}:{secured}"), found(server=f"https://{HOST}:{secured}")):
            assert (said.state, "for 90 more day(s)" in said.said) == ("ok", True), said


def test_one_that_is_about_to_end_is_told_before(authority: Authority, port: int) -> None:
    with running_tls_front(authority.certificate(days_to=13), port) as secured:
        said = found(broker=f"mqtts://{HOST}:{secured}")
    assert (said.state, "[broker] url" in said.said, "renewed" in said.do) == ("warn", True, True)


@pytest.mark.parametrize(
    ("days_from", "days_to", "said"), [(-20, -1, "certificate has expired"), (5, 90, "not yet valid")]
)
def test_one_of_another_time_names_the_clock(
    authority: Authority, port: int, days_from: int, days_to: int, said: str
) -> None:
    with running_tls_front(authority.certificate(days_from=days_from, days_to=days_to), port) as secured:
        came = found(server=f"https://{HOST}:{secured}")
    assert (came.state, said in came.said, "clock" in came.do) == ("fail", True, True), came


def test_one_for_another_name_names_the_field(authority: Authority, port: int) -> None:
    with running_tls_front(authority.certificate("broker.example"), port) as secured:
        came = found(broker=f"mqtts://{HOST}:{secured}")
    assert (came.state, "[broker] url" in came.do) == ("fail", True), came


def test_one_of_nobody_that_is_believed_says_how_to_believe_it(
    authority: Authority, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").path))
    with running_tls_front(authority.certificate(), port) as secured:
        came = found(server=f"https://{HOST}:{secured}")
    assert (came.state, "update-ca-certificates" in came.do) == ("fail", True), came


def test_what_speaks_no_tls_is_told_from_nobody(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        speaker = threading.Thread(target=_answer_in_the_open, args=(listening,))
        speaker.start()
        came = found(server=f"https://{HOST}:{port}")
        speaker.join()
    assert (came.state, "does not speak TLS" in came.said) == ("fail", True), came
    came = found(server=f"https://{HOST}:{port}")
    assert (came.state, "cannot be reached" in came.said) == ("warn", True), came


def _answer_in_the_open(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(4096)


def test_what_leaves_this_machine_in_the_open_is_told() -> None:
    assert found().state == "ok"
    assert found(broker="mqtt://localhost:1883", server="http://[::1]:80").state == "ok"
    came = found(broker="mqtt://broker.example", server="http://server.example")
    assert (came.state, came.said.startswith("[broker] url and [server] url: ")) == ("warn", True)
