"""Frames come out whole and in order, however the stream was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_gateway.frames import BUFFER_BYTES, Frames, LostPlace
from holdfast_worker.protocol import FRAME_BYTES_MAX, LENGTH

sizes = st.one_of(st.integers(1, 300), st.integers(BUFFER_BYTES - 10, BUFFER_BYTES + 10), st.just(3 * BUFFER_BYTES))


@given(st.lists(sizes, max_size=12), st.lists(st.integers(1, 2 * BUFFER_BYTES), min_size=1, max_size=20))
def test_every_frame_comes_out_whole(lengths: list[int], cuts: list[int]) -> None:
    stream = b"".join(LENGTH.pack(size) + bytes([number % 251]) * size for number, size in enumerate(lengths))
    found: list[bytes] = []
    kept: list[tuple[memoryview, bytes]] = []

    def received(frame: memoryview) -> None:
        found.append(bytes(frame))
        if len(frame) > BUFFER_BYTES:
            kept.append((frame, bytes(frame)))

    frames, at, turn = Frames(received), 0, 0
    while at < len(stream):
        room = frames.room()
        assert len(room) > 0
        # After the last cut the rest comes at once: a megabyte byte by byte proves no more, and takes a million turns.
        cut = cuts[turn] if turn < len(cuts) else len(stream)
        count = min(len(room), cut, len(stream) - at)
        room[:count] = stream[at : at + count]
        frames.filled(count)
        at, turn = at + count, turn + 1
    assert b"".join(found) == stream
    assert [len(frame) - LENGTH.size for frame in found] == lengths
    assert all(bytes(view) == was for view, was in kept)  # a large frame may be kept


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_that_no_frame_has_is_refused(length: int) -> None:
    frames = Frames(lambda _: None)
    frames.room()[:4] = LENGTH.pack(length)
    with pytest.raises(LostPlace):
        frames.filled(4)
