"""The thread that waits for sockets: it turns a member when that asked to be turned, and else leaves it alone."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator

import pytest

from holdfast_agent.edge.network import Network

WITHIN_S = 30.0
HOURS = 36_000.0


class Counting:
    """Asks to be left alone for each of `rest_s` in turn, and for the last from then on. Reads what comes on `ours`."""

    def __init__(self, *rest_s: float, ours: socket.socket | None = None) -> None:
        self._rest, self._ours = list(rest_s), ours
        self.turns: queue.Queue[None] = queue.Queue()
        self.was_ready = False

    def turn(self, now: float) -> float:  # noqa: ARG002 - Member's signature
        self.turns.put(None)
        return self._rest.pop(0) if len(self._rest) > 1 else self._rest[0]

    def ready(self, *, readable: bool, writable: bool) -> None:  # noqa: ARG002 - Member's signature
        assert self._ours is not None
        self._ours.recv(1)
        self.was_ready = True


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network("test")
    made.start()
    yield made
    made.stop()


def called(network: Network) -> None:
    """Returns when the thread has done all that it was asked to before, and turned everybody."""
    for _ in range(2):
        done: queue.Queue[None] = queue.Queue()
        network.call(lambda done=done: done.put(None))  # type: ignore[misc]  # mypy infers no type for a default
        done.get(timeout=WITHIN_S)


def test_whoever_joins_is_turned_at_once_while_another_rests(network: Network) -> None:
    for member in (Counting(HOURS), Counting(HOURS)):
        network.call(lambda member=member: network.join(member))  # type: ignore[misc]  # mypy infers no type for a default
        member.turns.get(timeout=WITHIN_S)


def test_a_member_that_waits_is_turned_again_without_any_event(network: Network) -> None:
    member = Counting(0.01, 0.01, 0.01, HOURS)
    network.call(lambda: network.join(member))
    for _ in range(4):
        member.turns.get(timeout=WITHIN_S)
    called(network)
    assert member.turns.qsize() <= 3, "at rest it does not spin"


def test_a_member_whose_socket_is_ready_says_anew_when_it_wants_to_be_turned(network: Network) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        member = Counting(HOURS, ours=ours)
        network.call(lambda: network.join(member))
        network.call(lambda: network.watch(ours.fileno(), member, writing=False))
        called(network)
        while not member.turns.empty():
            member.turns.get()
        member._rest = [0.01, HOURS]
        theirs.send(b"\0")
        for _ in range(2):  # for the byte, and after that by the time
            member.turns.get(timeout=WITHIN_S)
        assert member.was_ready
        network.call(lambda: network.forget(ours.fileno()))
        called(network)
