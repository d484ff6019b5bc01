"""Frames stay whole, however the socket cuts them."""

from __future__ import annotations

import socket
import threading

from hypothesis import given
from hypothesis import strategies as st

from holdfast_worker.channel import Channel
from holdfast_worker.protocol import LENGTH

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
