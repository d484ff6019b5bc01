"""HTTP as nobody should send it: each is answered honestly or ended in time, and others are served all the while."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_gateway import http_limits, http_service
from holdfast_gateway.slot import WAITING_MAX
from holdfast_gateway.worker import ASKED_MAX
from holdfast_shared.wire.release import Limits
from support.gateway_bench import DEADLINE_S, GatewayBench, installed, running_gateway
from support.gateway_traffic import Load

pytestmark = pytest.mark.slow

BODY_BYTES_MAX = 100_000
CONNECTIONS_MAX = 160


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayBench]:
    """One gateway for all of them: it must outlive each."""
    root: Path = tmp_path_factory.mktemp("hostile")
    with running_gateway(root, body_bytes_max=BODY_BYTES_MAX, connections_max=CONNECTIONS_MAX) as bench:
        agent = bench.agent()
        patient = Limits(
            deadline_ms=30_000, load_deadline_s=30
        )  # what is tried here is HTTP, however slow the machine is
        agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0", limits=patient)))
        yield bench


@pytest.fixture(autouse=True)
def _it_still_serves(served: GatewayBench) -> Iterator[None]:
    yield
    with served.http() as http:
        assert http.infer()[0] == 200
    assert "Traceback" not in served.log


def exchange(bench: GatewayBench, *parts: bytes, end: bool = True) -> bytes:
    """Everything that comes back until the gateway ends the connection."""
    with socket.create_connection(bench.address, timeout=DEADLINE_S) as peer:
        for part in parts:
            peer.sendall(part)
        if end:
            peer.shutdown(socket.SHUT_WR)
        return read_all(peer)


def read_all(peer: socket.socket) -> bytes:
    found = b""
    while data := peer.recv(1 << 16):
        found += data
    return found


def statuses(raw: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", raw)]


def infer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /v2/models/digits/infer HTTP/1.1", "Host: here", *headers]
    if length is not None or not any(header.startswith("Transfer") for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"GARBAGE / HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_400_and_ended(served: GatewayBench, raw: bytes) -> None:
    answer = exchange(served, raw)
    assert statuses(answer) == [400]
    assert b'{"error":"' in answer


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (infer(b"{}", "Inference-Header-Content-Length: 3"), 400),
        (infer(b"{}", "Inference-Header-Content-Length: -1"), 400),
        (infer(b"{}", "Inference-Header-Content-Length: 99999999999999999999"), 400),
        (infer(b"{}", "Inference-Header-Content-Length: 2", "Inference-Header-Content-Length: 1"), 400),
        (infer(b"{}", "Content-Encoding: gzip"), 415),
        (infer(b"", length=BODY_BYTES_MAX + 1), 413),
        (infer(b"%x\r\n" % (BODY_BYTES_MAX + 1) + bytes(BODY_BYTES_MAX + 1), "Transfer-Encoding: chunked"), 413),
        (infer(b"{}", *[f"X-{n}: 1" for n in range(http_limits.HEADERS_MAX)]), 431),
        (infer(b"{}", "X: " + "y" * http_limits.HEADERS_BYTES_MAX), 431),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 200_000, 431),
        (b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n", 431),
        (infer(b"{}", length=10), 400),  # the body ends early
        (infer(b"{}", "Connection: Upgrade", "Upgrade: h2c"), 400),
        (b"CONNECT here:80 HTTP/1.1\r\n\r\n", 400),
        (b"DELETE /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v3 HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"GET /%ff%00/../v2 HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_each_fault_has_its_status(served: GatewayBench, raw: bytes, status: int) -> None:
    answer = exchange(served, raw)
    assert statuses(answer) == [status]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: GatewayBench) -> None:
    """The answer comes although not one byte of the body was sent, and is there to read although more is being sent."""
    answer = exchange(served, infer(b"", length=10**12), end=False)
    assert statuses(answer) == [413]
    with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
        peer.sendall(infer(b"", length=BODY_BYTES_MAX * 100))
        peer.sendall(bytes(BODY_BYTES_MAX * 2))
        assert statuses(read_all(peer)) == [413]


def test_pipelined_requests_are_answered_in_order(served: GatewayBench) -> None:
    bodies = [json.dumps({"id": str(n), "do": {"*": "slow:20" if n % 3 == 0 else "ok"}}).encode() for n in range(12)]
    last = b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = exchange(served, b"".join(map(infer, bodies)) + last, end=False)
    assert statuses(answer) == [200] * 13
    places = [answer.index(f'"id": "{n}"'.encode()) for n in range(12)]
    assert places == sorted(places)


def test_a_thousand_pipelined_requests_are_all_answered(served: GatewayBench) -> None:
    """And a fault among them only after those before it."""
    many = b"GET /v2/health/live HTTP/1.1\r\n\r\n" * 1000
    assert statuses(exchange(served, many + b"NONSENSE\r\n\r\n", end=False)) == [200] * 1000 + [400]


def test_an_offer_of_http_2_is_passed_over(served: GatewayBench) -> None:
    offer = b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    assert statuses(exchange(served, offer * 500)) == [200] * 500


def test_a_client_may_end_its_side_and_still_have_its_answer(served: GatewayBench) -> None:
    assert statuses(exchange(served, infer(b'{"do": {"*": "slow:100"}}'))) == [200]


def test_100_continue_and_chunks(served: GatewayBench) -> None:
    with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
        peer.sendall(infer(b"", "Expect: 100-continue", "Connection: close", "Transfer-Encoding: chunked"))
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in b'{"id": "9"}':
            peer.sendall(b"1\r\n%c\r\n" % byte)
        peer.sendall(b"0\r\nTrailer: x\r\n\r\n")
        answer = read_all(peer)
    assert statuses(answer) == [200]
    assert b'"id": "9"' in answer


def test_a_body_that_comes_byte_by_byte_is_served(served: GatewayBench) -> None:
    raw = infer(b'{"id": "slow"}', "Connection: close")
    assert b'"id": "slow"' in exchange(served, *[raw[at : at + 1] for at in range(len(raw))], end=False)


def large(name: str) -> bytes:
    """Longer than one read, and no JSON if a byte of it were lost, doubled or out of place."""
    numbers = ",".join(map(str, range(15_000)))
    return f'{{"padding": [{numbers}], "id": "{name}"}}'.encode()


@pytest.mark.parametrize("piece", [1 << 20, 65_536, 30_001, 977])
def test_a_large_body_is_served_between_small_ones(served: GatewayBench, piece: int) -> None:
    """However it is cut into pieces, and whatever comes in the same piece before its head and after its end."""
    names = ["a", "large-1", "b", "c", "large-2", "large-3", "d"]
    bodies = [large(name) if name.startswith("large") else f'{{"id": "{name}"}}'.encode() for name in names]
    assert 65_536 < len(bodies[1]) < BODY_BYTES_MAX
    last = b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"
    raw = b"".join(map(infer, bodies)) + last
    answer = exchange(served, *[raw[at : at + piece] for at in range(0, len(raw), piece)], end=False)
    assert statuses(answer) == [200] * 8
    assert re.findall(rb'"id": "([^"]*)"', answer) == [name.encode() for name in names]


def test_a_large_body_may_be_waited_for_or_come_in_chunks(served: GatewayBench) -> None:
    body = large("waited for")
    with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
        peer.sendall(infer(b"", "Expect: 100-continue", length=len(body)))
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body)
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        peer.sendall(infer(b"", "Transfer-Encoding: chunked", "Connection: close") + chunk)
        assert statuses(read_all(peer)) == [200, 200]


@pytest.mark.parametrize("size", [2, 100_000])
def test_a_body_that_did_not_wait_is_not_asked_for_once_it_is_answered(served: GatewayBench, size: int) -> None:
    """Its answer was not the next when its head came: a client would take what comes after its answer for another's."""
    asked = infer(b'{"do": {"*": "slow:50"}}')
    body = b'{"id": "second"}'.ljust(size)
    with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
        peer.sendall(asked + infer(body, "Expect: 100-continue"))
        answer = b""
        while b'"id": "second"' not in answer:
            answer += peer.recv(1 << 16)
        peer.sendall(infer(b'{"id": "third"}', "Connection: close"))
        answer += read_all(peer)
    assert statuses(answer) == [200, 200, 200]


def test_a_large_body_that_ends_early_is_told_so_and_holds_nothing(served: GatewayBench) -> None:
    """More of them than may be held at once."""
    body = large("never whole")
    for end in (100, 65_536, len(body) - 1):
        for _ in range(5):
            assert statuses(exchange(served, infer(body[:end], length=len(body)))) == [400]
    assert statuses(exchange(served, infer(body, "Connection: close"))) == [200]


def test_heads_that_announce_much_and_send_nothing_keep_nobody_out(served: GatewayBench) -> None:
    """What is held of a body is what came of it, and a little."""
    head = infer(b"", length=BODY_BYTES_MAX)
    peers = [socket.create_connection(served.address, timeout=DEADLINE_S) for _ in range(http_service.BODIES_HELD_MAX)]
    try:
        for peer in peers:
            peer.sendall(head + b"{")
        answers = [exchange(served, infer(large("beside them"), "Connection: close"), end=False) for _ in range(5)]
        assert [statuses(answer) for answer in answers] == [[200]] * 5
    finally:
        for peer in peers:
            peer.close()


def test_more_than_may_be_held_is_refused(served: GatewayBench) -> None:
    most = large("all but whole")
    most += b" " * (BODY_BYTES_MAX - len(most))
    peers: list[socket.socket] = []
    due = time.monotonic() + DEADLINE_S
    try:
        while statuses(exchange(served, infer(b"{}", "Connection: close"))) != [429]:
            assert time.monotonic() < due
            # One after the other until no more fit: of another test's peers, which are closed, something may be held still.
            peers.append(socket.create_connection(served.address, timeout=DEADLINE_S))
            peers[-1].sendall(infer(most[:-1], length=len(most)))
        peers[0].sendall(most[-1:])  # it is answered, and holds nothing any more
        assert peers[0].recv(100).startswith(b"HTTP/1.1 200")
        assert statuses(exchange(served, infer(b"{}", "Connection: close"))) == [200]
    finally:
        for peer in peers:
            peer.close()


def test_a_body_that_outgrows_what_may_be_held_is_refused_on_its_way(served: GatewayBench) -> None:
    """Six that began well would take more together than is left: each has one answer, and nothing stays held."""
    body = large("one of six")
    peers = [socket.create_connection(served.address, timeout=DEADLINE_S) for _ in range(6)]
    try:
        for peer in peers:
            peer.sendall(infer(body[:60_000], "Connection: close", length=len(body)))
        for peer in peers:
            peer.sendall(body[60_000:])
        found = [statuses(read_all(peer)) for peer in peers]
    finally:
        for peer in peers:
            peer.close()
    assert [200] in found
    assert set(map(tuple, found)) <= {(200,), (429,)}
    assert statuses(exchange(served, infer(body, "Connection: close"))) == [200]


def test_head_has_no_body(served: GatewayBench) -> None:
    answer = exchange(served, b"HEAD /v2 HTTP/1.1\r\n\r\n" * 2)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"\r\n\r\n")


def test_an_old_client_without_keep_alive_is_served(served: GatewayBench) -> None:
    assert statuses(exchange(served, b"GET /v2/health/live HTTP/1.0\r\n\r\n", end=False)) == [200]


def test_a_client_that_goes_away_costs_nobody_anything(served: GatewayBench) -> None:
    for _ in range(20):
        with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
            peer.sendall(infer(b'{"do": {"*": "slow:5"}}'))
        with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
            peer.sendall(infer(b"{}", length=50_000))
    with served.http() as http:
        assert http.infer()[0] == 200


def test_too_many_connections_are_told_so(served: GatewayBench) -> None:
    """And those that are there are served on."""
    peers = [socket.create_connection(served.address, timeout=DEADLINE_S) for _ in range(CONNECTIONS_MAX)]
    try:
        peers[0].sendall(infer(b"{}", "Connection: close"))
        assert statuses(read_all(peers[0])) == [200]
        over = [socket.create_connection(served.address, timeout=DEADLINE_S) for _ in range(3)]
        answers = [read_all(peer) for peer in over]
        for peer in over:
            peer.close()
        assert [429] in [statuses(answer) for answer in answers]
        assert any(b"connections_max" in answer for answer in answers)
    finally:
        for peer in peers:
            peer.close()
    with served.http() as http:
        due = time.monotonic() + DEADLINE_S
        while http.ask("GET", "/v2/health/live")[0] != 200:
            assert time.monotonic() < due


def test_more_than_can_wait_is_refused_at_once(served: GatewayBench) -> None:
    """Every request is answered: well, or with 429 and a time to come back."""
    peers = [socket.create_connection(served.address, timeout=DEADLINE_S) for _ in range(CONNECTIONS_MAX)]
    try:
        peers[0].sendall(infer(b'{"do": {"*": "slow:900"}}', "Connection: close"))
        for peer in peers[1:]:
            peer.sendall(infer(b"{}", "Connection: close"))
        answers = [read_all(peer) for peer in peers]
    finally:
        for peer in peers:
            peer.close()
    found = [statuses(answer) for answer in answers]
    assert 1 <= found.count([429]) <= CONNECTIONS_MAX - WAITING_MAX - ASKED_MAX
    assert found.count([200]) == CONNECTIONS_MAX - found.count([429])
    refused = next(answer for answer in answers if statuses(answer) == [429])
    assert b"\r\nRetry-After: 1\r\n" in refused


def test_a_large_answer_to_a_slow_reader_is_whole_and_holds_up_nobody(served: GatewayBench) -> None:
    """It reads nothing for longer than a connection that has had its answer is kept."""
    with socket.create_connection(served.address, timeout=DEADLINE_S) as peer:
        peer.sendall(infer(b'{"do": {"*": "big:30000000"}}', "Connection: close"))
        reading_from = time.monotonic() + http_limits.LINGER_S + 1.5
        with Load(served, 2) as load:
            while time.monotonic() < reading_from:
                load.until_answered_by("1.0.0", 20)
        assert load.failed == []
        body = read_all(peer).partition(b"\r\n\r\n")[2]
    assert len(json.loads(body)["padding"]) == 30_000_000


def test_a_request_that_never_ends_is_answered_408(tmp_path: Path) -> None:
    """Its connection has a deadline, whatever it trickles."""
    with running_gateway(tmp_path) as bench, socket.create_connection(bench.address, timeout=DEADLINE_S) as peer:
        due = time.monotonic() + http_limits.HEADERS_S + 5
        peer.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        peer.settimeout(0.2)
        answer = b""
        while not answer:
            assert time.monotonic() < due
            peer.sendall(b"y")
            try:
                answer = peer.recv(1000)
            except TimeoutError:
                continue
        assert statuses(answer) == [408]
