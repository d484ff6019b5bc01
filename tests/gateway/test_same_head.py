"""A head that came before is not parsed again: what is answered is what a new connection would be answered."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_gateway.http_message import CONTINUE
from holdfast_gateway.http_service import BODIES_HELD_MAX
from holdfast_gateway.same_head import HEAD_BYTES_MAX, SameHead
from support.gateway_bench import DEADLINE_S, PIPELINE, GatewayBench, installed, running_gateway

BODY_BYTES_MAX = 2000
HEAD = b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n"


def remembering(data: bytes, announced: int) -> SameHead:
    found = SameHead()
    found.remember(memoryview(data), announced)
    return found


def test_a_body_behind_the_same_head_is_found() -> None:
    same = remembering(HEAD + b"ab", 2)
    assert same.body_of(memoryview(HEAD + b"cd")) == b"cd"
    assert same.body_of(memoryview(HEAD + b"\r\n")) == b"\r\n"


@pytest.mark.parametrize(
    "data",
    [HEAD + b"c", HEAD + b"cde", HEAD, b"", HEAD.replace(b"/x", b"/y") + b"cd", HEAD.lower() + b"cd"],
    ids=["part of a body", "more than a body", "no body", "nothing", "another path", "another case"],
)
def test_what_is_not_just_that_is_left_to_the_parser(data: bytes) -> None:
    assert remembering(HEAD + b"ab", 2).body_of(memoryview(data)) is None


@pytest.mark.parametrize(
    "data",
    [b"\r\n\r\n" + HEAD + b"ab", HEAD + b"\r\n" + b"\r\n", HEAD + b"ab\r\n", HEAD.replace(b"\r\n", b"\n") + b"ab"],
    ids=["blank lines before", "a blank line behind", "a blank line behind a body", "bare line feeds"],
)
def test_a_head_that_is_not_all_of_what_came_before_its_body_is_not_remembered(data: bytes) -> None:
    same = remembering(data, 2)
    assert same.body_of(memoryview(data)) is None
    assert same.body_of(memoryview(HEAD + b"cd")) is None


def test_a_long_head_is_not_kept() -> None:
    long = HEAD.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n")
    assert remembering(long + b"ab", 2).body_of(memoryview(long + b"cd")) is None


# ---------------------------------------------------------------- through a gateway
@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayBench]:
    root: Path = tmp_path_factory.mktemp("same-head")
    with running_gateway(root, body_bytes_max=BODY_BYTES_MAX) as bench:
        agent = bench.agent()
        agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
        yield bench


def asked(
    number: int, *headers: str, path: str = f"/v2/models/{PIPELINE}/infer", blanks: int = 0, do: str = "slow:000"
) -> bytes:
    """All of one length, whatever the number."""
    body = json.dumps({"id": f"{number:06}", "do": {"*": do}}).encode() + b" " * blanks
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Peer:
    """One connection; `ask` returns the status and the id that came back."""

    def __init__(self, bench: GatewayBench) -> None:
        self._socket = socket.create_connection(bench.address, timeout=DEADLINE_S)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._socket.sendall(part)

    def ask(self, *parts: bytes, answers: int = 1) -> list[tuple[int, str]]:
        self.send(*parts)
        found: list[tuple[int, str]] = []
        raw = b""
        while len(found) < answers:
            data = self._socket.recv(1 << 16)
            assert data, f"the gateway ended the connection after {raw!r}"
            raw = (raw + data).replace(CONTINUE, b"")
            while (
                whole := re.match(rb"HTTP/1.1 (\d+) (?s:.*?)Content-Length: (\d+)(?s:.*?)\r\n\r\n", raw)
            ) is not None:
                end = whole.end() + int(whole[2])
                if len(raw) < end:
                    break
                body, raw = raw[whole.end() : end], raw[end:]
                found.append((int(whole[1]), json.loads(body).get("id", "")))
        assert not raw
        return found


@pytest.mark.slow
def test_each_body_is_answered_whichever_heads_come(served: GatewayBench) -> None:
    with Peer(served) as peer:
        for number in range(0, 300, 10):
            assert peer.ask(asked(number)) == [(200, f"{number:06}")]
            assert peer.ask(asked(number + 1)) == [(200, f"{number + 1:06}")]
            whole = asked(number + 2)
            cut = 1 + number % (len(whole) - 1)
            assert peer.ask(whole[:cut], whole[cut:]) == [(200, f"{number + 2:06}")]
            two = [(200, f"{number + 3:06}"), (200, f"{number + 4:06}")]
            assert peer.ask(asked(number + 3) + asked(number + 4), answers=2) == two
            assert peer.ask(b"\r\n" + asked(number + 5)) == [(200, f"{number + 5:06}")]
            assert peer.ask(asked(number + 6, blanks=3)) == [(200, f"{number + 6:06}")]
            assert peer.ask(asked(number + 7, blanks=3)) == [(200, f"{number + 7:06}")]
            elsewhere = asked(0, path="/v2/models/unknown/infer")
            assert peer.ask(elsewhere) == [(404, "")]
            assert peer.ask(asked(number)) == peer.ask(asked(number)) == [(200, f"{number:06}")]
            assert peer.ask(elsewhere[:cut], elsewhere[cut:]) == [(404, "")]
            assert peer.ask(asked(number)) == [(200, f"{number:06}")]
            assert peer.ask(asked(number + 8, "Expect: 100-continue")) == [(200, f"{number + 8:06}")]
            assert peer.ask(asked(number + 9, "Expect: 100-continue")) == [(200, f"{number + 9:06}")]


@pytest.mark.slow
def test_a_head_that_ends_the_connection_ends_it(served: GatewayBench) -> None:
    with Peer(served) as peer:
        assert peer.ask(asked(1)) == peer.ask(asked(1)) == [(200, "000001")]
        assert peer.ask(asked(2, "Connection: close")) == [(200, "000002")]
        with pytest.raises((AssertionError, ConnectionError), match=r"ended the connection|[Rr]eset|[Bb]roken"):
            peer.ask(asked(3, "Connection: close"))


@pytest.mark.slow
def test_a_body_beyond_the_limit_is_refused_after_others(served: GatewayBench) -> None:
    with Peer(served) as peer:
        assert peer.ask(asked(1)) == peer.ask(asked(1)) == [(200, "000001")]
        assert peer.ask(asked(2, blanks=BODY_BYTES_MAX)) == [(413, "")]


@pytest.mark.slow
def test_bodies_behind_heads_that_came_before_are_held_within_the_limit(served: GatewayBench) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(served)) for _ in range(3 * BODIES_HELD_MAX)]
        for peer in peers:
            assert peer.ask(asked(1, blanks=BODY_BYTES_MAX - 100)) == [(200, "000001")]
        for peer in peers:
            peer.send(asked(2, blanks=BODY_BYTES_MAX - 100, do="slow:300"))
        statuses = [status for peer in peers for status, _ in peer.ask()]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= BODIES_HELD_MAX
