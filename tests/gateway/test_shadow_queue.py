"""What waits for a shadow: bounded in number and bytes, and the oldest goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast_gateway.inference import Inference
from holdfast_gateway.shadow_queue import QUEUED_BYTES_MAX, QUEUED_MAX, Nobody, Shadowed, ShadowQueue
from holdfast_worker.protocol import NO_HEADER


def one(size: int, number: int = 0) -> Shadowed:
    asked = Inference(Nobody(), b"", version="", wants_binary=False, header_length=NO_HEADER, since=0.0)
    return Shadowed(asked, bytes(size), NO_HEADER, number)


def test_the_oldest_are_dropped_and_the_newest_stay_in_order() -> None:
    queue = ShadowQueue()
    dropped = [queue.put(one(1, number)) for number in range(QUEUED_MAX + 3)]
    assert dropped == [0] * QUEUED_MAX + [1, 1, 1]
    assert [queue.pop().serving_us for _ in range(len(queue))] == list(range(3, QUEUED_MAX + 3))


def test_one_that_is_too_large_for_the_queue_costs_no_other_its_place() -> None:
    queue = ShadowQueue()
    queue.put(one(10))
    assert queue.put(one(QUEUED_BYTES_MAX + 1)) == 1
    assert len(queue) == 1


@given(st.lists(st.integers(0, QUEUED_BYTES_MAX // 2), max_size=200))
def test_whatever_comes_nothing_is_lost_uncounted_and_no_bound_is_passed(sizes: list[int]) -> None:
    """The bytes that are held are counted here by hand, too."""
    queue = ShadowQueue()
    dropped = 0
    for number, size in enumerate(sizes):
        dropped += queue.put(one(size, number))
        assert len(queue) <= QUEUED_MAX
    assert dropped + len(queue) == len(sizes)
    held = [queue.pop().size_bytes for _ in range(len(queue))]
    assert sum(held) <= QUEUED_BYTES_MAX
    assert queue.put(one(QUEUED_BYTES_MAX)) == 0
    assert queue.clear() == 1
    assert len(queue) == 0
