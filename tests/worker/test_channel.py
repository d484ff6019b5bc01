"""Frames stay whole, however the socket cuts them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.edge.layout import StateFolder
from holdfast_worker import channel as channel_module
from holdfast_worker.channel import Channel
from holdfast_worker.main import serve
from holdfast_worker.protocol import LENGTH, NO_HEADER, Kind, Stop, ask_head, control
from support import digits_models
from support.installed_release import publish, tensor
from support.loaded_release import loaded

DEADLINE_S = 30.0


def framed(content: bytes) -> bytes:
    return LENGTH.pack(len(content)) + content


def test_parts_that_the_socket_takes_only_in_pieces_arrive_whole() -> None:
    """A socket with a timeout takes what fits and says so, as one does that a signal interrupts."""
    ours, theirs = socket.socketpair()
    parts = (b"head", b"\x01" * 3_000_000, memoryview(b"\x02" * 3_000_000), b"", b"tail")
    with ours, theirs:
        ours.settimeout(DEADLINE_S)
        theirs.settimeout(DEADLINE_S)
        sender = threading.Thread(target=Channel(ours).send, args=parts)
        sender.start()
        arrived = bytearray()
        while len(arrived) < sum(map(len, parts)):
            arrived += theirs.recv(1 << 20)
        sender.join(DEADLINE_S)
    assert arrived == b"".join(parts)


@given(
    contents=st.lists(st.sampled_from([1, 2, 100, 60_000, 65_532, 65_533, 90_000]), min_size=1, max_size=6),
    cut=st.sampled_from([1, 3, 4, 5, 4096, 65_536, 10**6]),
)
def test_frames_come_out_as_they_went_in_whatever_their_sizes_and_cuts(contents: list[int], cut: int) -> None:
    """Around the buffer's size above all: what was handed out is right, and what lies behind it is not lost."""
    ours, theirs = socket.socketpair()
    frames = [bytes([index]) * size for index, size in enumerate(contents)]
    sent = b"".join(map(framed, frames))
    pieces = [sent[start : start + cut] for start in range(0, len(sent), cut)] if len(sent) // cut < 2000 else [sent]

    def feed() -> None:
        for piece in pieces:
            theirs.sendall(piece)
        theirs.close()

    with ours, theirs:
        ours.settimeout(DEADLINE_S)
        feeder = threading.Thread(target=feed)
        feeder.start()
        channel = Channel(ours)
        for expected in frames:
            frame = channel.receive()
            assert frame is not None
            assert bytes(frame) == framed(expected)
        assert channel.receive() is None
        feeder.join(DEADLINE_S)


class Looks:
    """How often the channel looked in vain, and what happens at the next time."""

    def __init__(self) -> None:
        self.count = 0
        self.meanwhile: Callable[[], object] | None = None

    def __call__(self) -> None:
        self.count += 1
        if self.meanwhile is not None:
            happening, self.meanwhile = self.meanwhile, None
            happening()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    found = Looks()
    monkeypatch.setattr(os, "sched_yield", found)
    monkeypatch.setattr(channel_module, "LOOK_S", 0.02)
    return found


@pytest.fixture
def _long_look(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than the real moment between two lines of a test."""
    monkeypatch.setattr(channel_module, "LOOK_S", DEADLINE_S)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Channel, socket.socket]]:
    """One that looks before it sleeps, and the gateway's end."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE_S)
        channel = Channel(ours)
        channel.look_before_sleeping()
        yield channel, theirs


def asked_at_once(channel: Channel, peer: socket.socket) -> None:
    peer.sendall(framed(b"at once"))
    assert channel.receive() is not None


@pytest.mark.usefixtures("_long_look")
def test_a_worker_that_was_asked_soon_looks_for_the_next_before_it_sleeps(
    pair: tuple[Channel, socket.socket], looks: Looks
) -> None:
    channel, peer = pair
    asked_at_once(channel, peer)
    looks.meanwhile = lambda: peer.sendall(framed(b"while it looked"))
    frame = channel.receive()
    assert frame is not None
    assert bytes(frame) == framed(b"while it looked")
    assert looks.count == 1


@pytest.mark.usefixtures("_long_look")
def test_a_worker_that_serves_looks(state: StateFolder, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    runner = loaded(state, publish("digits", "1.0.0", digits_models.trained()))
    body = json.dumps({"inputs": [tensor("image", digits_models.images()[:1])]}).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE_S)
        looks.meanwhile = lambda: theirs.sendall(control(Kind.STOP, Stop()))
        theirs.sendall(ask_head(0, wants_binary=False, header_length=NO_HEADER, body_bytes=len(body)) + body)
        serve(Channel(ours), runner)
    assert looks.count == 1


def test_a_large_request_that_comes_late_has_the_next_waited_for_asleep(
    pair: tuple[Channel, socket.socket], looks: Looks
) -> None:
    """Its later pieces come at once, which says nothing of the request after it."""
    channel, peer = pair
    large = framed(bytes(3 * channel_module._BUFFER_BYTES))
    threading.Timer(0.05, peer.sendall, [large]).start()
    frame = channel.receive()
    assert frame is not None
    assert len(frame) == len(large)
    threading.Timer(0.05, peer.sendall, [framed(b"late again")]).start()
    assert channel.receive() is not None
    assert looks.count == 0


def test_a_worker_that_is_not_asked_soon_sleeps(pair: tuple[Channel, socket.socket]) -> None:
    """A third of a second of looking would be as much processor time."""
    channel, peer = pair
    asked_at_once(channel, peer)
    threading.Timer(0.3, peer.sendall, [framed(b"late")]).start()
    before = time.thread_time()
    assert channel.receive() is not None
    assert time.thread_time() - before < 0.1


def test_what_came_late_has_the_next_waited_for_asleep(pair: tuple[Channel, socket.socket], looks: Looks) -> None:
    channel, peer = pair
    asked_at_once(channel, peer)
    threading.Timer(0.05, peer.sendall, [framed(b"late")]).start()
    assert channel.receive() is not None
    looks.count = 0
    threading.Timer(0.05, peer.sendall, [framed(b"late again")]).start()
    assert channel.receive() is not None
    assert looks.count == 0


@pytest.mark.usefixtures("_long_look")
def test_on_one_core_a_worker_never_looks(
    pair: tuple[Channel, socket.socket], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, peer = pair
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    channel.look_before_sleeping()
    asked_at_once(channel, peer)
    threading.Timer(0.05, peer.sendall, [framed(b"late")]).start()
    assert channel.receive() is not None
    assert looks.count == 0


@pytest.mark.usefixtures("_long_look")
def test_a_peer_that_goes_while_it_is_looked_for_is_gone(pair: tuple[Channel, socket.socket], looks: Looks) -> None:
    channel, peer = pair
    asked_at_once(channel, peer)
    looks.meanwhile = peer.close
    assert channel.receive() is None
