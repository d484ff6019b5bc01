"""Polling: what changed is handed on once, as the bytes that were served; nothing that a server does ends it."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast_agent.edge import polling
from holdfast_agent.edge.polling import AssignmentPoll, Polled
from support.hostile_server import HostileServer, endless, head, honest, running_hostile_server, status, trickle

REGION, DEVICE = "/api/v1/assignments/region/eu-west", "/api/v1/assignments/device/camera-7"
DIGESTS = ["sha256:" + character * 64 for character in "abc"]
WITHIN_S = 15.0
Start = Callable[..., AssignmentPoll]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what only protects servers."""
    monkeypatch.setattr(polling, "GAP_S", 0.02)
    monkeypatch.setattr(polling, "FIRST_S", 0.1)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running_hostile_server() as running:
        running.on(REGION, listing())
        running.on(DEVICE, listing())
        yield running


@pytest.fixture
def got() -> queue.SimpleQueue[Polled]:
    return queue.SimpleQueue()


@pytest.fixture
def start(server: HostileServer, got: queue.SimpleQueue[Polled]) -> Iterator[Start]:
    started: list[AssignmentPoll] = []

    def make(poll_s: float = 3600.0) -> AssignmentPoll:
        poll = AssignmentPoll(url=server.url, region="eu-west", device="camera-7", poll_s=poll_s, emit=got.put)
        poll.start()
        started.append(poll)
        return poll

    yield make
    for poll in started:
        poll.stop()


def listing(etag: str = '"1"', **pipelines: str) -> Callable[..., None]:
    return honest(json.dumps({"pipelines": pipelines}).encode(), etag)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.01)


def test_the_first_poll_comes_soon_and_hands_on_what_is_assigned(
    server: HostileServer, got: queue.SimpleQueue[Polled], start: Start
) -> None:
    server.on(REGION, listing(digits=DIGESTS[0]))
    server.on(f"{REGION}/digits", honest(b"for the region"))
    server.on(DEVICE, listing(digits=DIGESTS[1]))
    server.on(f"{DEVICE}/digits", honest(b"for the device"))
    start()
    assert got.get(timeout=WITHIN_S) == Polled("region", "eu-west", "digits", b"for the region")
    assert got.get(timeout=WITHIN_S) == Polled("device", "camera-7", "digits", b"for the device")


def test_only_what_changed_is_fetched_again(
    server: HostileServer, got: queue.SimpleQueue[Polled], start: Start
) -> None:
    server.on(REGION, listing(digits=DIGESTS[0], faces=DIGESTS[0]))
    server.on(f"{REGION}/digits", honest(b"one"), honest(b"two"))
    server.on(f"{REGION}/faces", honest(b"faces"))
    poll = start()
    assert {got.get(timeout=WITHIN_S).envelope for _ in range(2)} == {b"one", b"faces"}
    poll.poke()
    eventually(lambda: len(server.asked(REGION)) == 2)
    assert server.asked(REGION)[1].headers["if-none-match"] == '"1"'
    server.on(REGION, listing('"2"', digits=DIGESTS[1], faces=DIGESTS[0]))
    poll.poke()
    assert got.get(timeout=WITHIN_S).envelope == b"two"
    assert len(server.asked(f"{REGION}/faces")) == 1


def test_it_polls_again_and_again_by_itself(server: HostileServer, start: Start) -> None:
    start(poll_s=0.1)
    eventually(lambda: len(server.asked(REGION)) >= 3)


def test_a_document_that_did_not_come_is_asked_for_again(
    server: HostileServer, got: queue.SimpleQueue[Polled], start: Start
) -> None:
    """The listing's ETag counts only once everything that it lists is here."""
    server.on(REGION, listing(digits=DIGESTS[0]))
    server.on(f"{REGION}/digits", status(503), honest(b"at last"))
    poll = start(poll_s=0.1)
    poll.poke()
    assert got.get(timeout=WITHIN_S).envelope == b"at last"


@pytest.mark.parametrize(
    "behaviour",
    [
        status(500, b"broken"),
        status(302, Location="http://127.0.0.1:1/"),
        status(200, b"<html>Please log in</html>"),
        status(200, b'{"pipelines": {"digits": "no digest"}}'),
        status(200, b'{"pipelines": {"../../etc": "sha256:' + b"a" * 64 + b'"}}'),
        status(200, json.dumps({"pipelines": {f"p{n}": DIGESTS[0] for n in range(300)}}).encode()),
        endless,
        lambda turn: turn.send(b"not HTTP at all\r\n\r\n"),
        lambda turn: turn.send(head(200, Content_Length=1000) + b'{"pipelines": {}}'),
        lambda turn: turn.send(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000),
        trickle(head(200, X="y" * 1000), 0.05),
    ],
)
def test_whatever_answers_polling_goes_on(
    server: HostileServer,
    got: queue.SimpleQueue[Polled],
    start: Start,
    behaviour: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "REQUEST_S", 1.0)
    server.on(REGION, behaviour, listing(digits=DIGESTS[0]))
    server.on(f"{REGION}/digits", honest(b"at last"))
    start(poll_s=0.1)
    assert got.get(timeout=WITHIN_S).envelope == b"at last"
    assert got.empty()


def test_a_server_that_asks_for_time_gets_it(server: HostileServer, start: Start) -> None:
    server.on(REGION, status(503, Retry_After="3600"), listing())
    poll = start(poll_s=0.1)
    eventually(lambda: len(server.asked(REGION)) == 1)
    assert poll._round() <= 0.2  # answered now
    server.on(REGION, status(503, Retry_After="3600"))
    assert poll._round() == 3600


def test_devices_that_began_together_poll_apart(server: HostileServer, got: queue.SimpleQueue[Polled]) -> None:
    """Half of the time and half as much again, drawn anew each time."""
    poll = AssignmentPoll(url=server.url, region="eu-west", device="camera-7", poll_s=600.0, emit=got.put)
    waits = [poll._round() for _ in range(30)]
    assert all(300 <= wait_s <= 900 for wait_s in waits)
    assert max(waits) - min(waits) > 100


def test_a_server_that_is_down_is_asked_ever_more_rarely_by_each_at_its_own_moment(
    server: HostileServer, got: queue.SimpleQueue[Polled]
) -> None:
    """Full jitter below a bound that doubles up to the ordinary wait."""
    server.on(REGION, status(500))
    poll = AssignmentPoll(url=server.url, region="eu-west", device="camera-7", poll_s=600.0, emit=got.put)
    waits = [poll._round() for _ in range(40)]
    bounds = [min(600.0, polling.RETRY_FIRST_S * 2.0**failures) for failures in range(40)]
    assert all(0 <= wait_s <= bound for wait_s, bound in zip(waits, bounds, strict=True))
    assert max(waits[10:]) > 200 > min(waits[10:])
    server.on(REGION, listing())
    assert poll._round() >= 300, "and it is forgotten once it answers"


def test_a_document_larger_than_any_may_be_is_not_handed_on(
    server: HostileServer, got: queue.SimpleQueue[Polled], start: Start
) -> None:
    server.on(REGION, listing(digits=DIGESTS[0]))
    server.on(f"{REGION}/digits", honest(b"x" * (48 * 1024 + 1)), honest(b"fits"))
    start(poll_s=0.1)
    assert got.get(timeout=WITHIN_S).envelope == b"fits"


def test_it_stops_at_once_while_it_waits(start: Start) -> None:
    poll = start()
    poll.stop()
    assert not poll._thread.is_alive()
