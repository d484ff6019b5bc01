"""Counting: what is counted is in the open window once, and slides out of the sliding one when its time has passed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_gateway.control import WINDOWS_KEPT_MAX
from holdfast_gateway.counts import BUCKETS_MAX, Bad, Counts
from holdfast_gateway.losses import LATE_MAX, LOSS_WINDOW_S, LOSSES_MAX, Loss, Losses
from holdfast_gateway.windows import Ledger
from holdfast_shared.assign import Target
from holdfast_shared.histogram import merged
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.report import Window

TARGET = Target(release=ReleaseRef(version="1.0.0", digest="sha256:" + "1" * 64))
NULL = Bad(error=False, hang=False, null=True, latency_ms=3.0, at_s=0.0)
HANG = Bad(error=True, hang=True, null=False, latency_ms=900.0, at_s=0.0)

# (seconds since the one before, what happened)
happenings = st.lists(
    st.tuples(st.floats(0, 30), st.sampled_from(["good", "null", "hang", "behind", "input", "close", "look"])),
    max_size=60,
)


def add(counts: Counts, what: str, now: float) -> None:
    match what:
        case "good":
            counts.good(2.0, now)
        case "null":
            counts.bad(NULL._replace(at_s=now), now, answered_by_another=True)
        case "hang":
            counts.bad(HANG._replace(at_s=now), now, answered_by_another=False)
        case "behind":
            counts.behind(now, answered_by_another=True)
        case "input":
            counts.input_fault(now)


def summed(windows: Sequence[Window]) -> tuple[int, ...]:
    names = ("requests", "errors", "nulls", "hangs", "input_faults", "failed_over")
    return tuple(sum(getattr(window, name) for window in windows) for name in names)


def expected(whats: Sequence[str]) -> tuple[int, ...]:
    count = whats.count
    return (
        count("good") + count("null") + count("hang") + count("behind"),
        count("hang"),
        count("null"),
        count("hang"),
        count("input"),
        count("null") + count("behind"),
    )


@given(happenings)
def test_closed_windows_sum_to_exactly_what_happened(steps: list[tuple[float, str]]) -> None:
    counts, now, closed = Counts("p", TARGET, wall_us=0), 1000.0, []
    for number, (after_s, what) in enumerate(steps):
        now += after_s
        add(counts, what, now)
        if what == "close":
            closed.append(counts.close(number, wall_us=int(now * 1e6)))
        if what == "look":
            counts.slid(now, wall_us=int(now * 1e6))
    assert counts.open_is_empty == (expected([what for _, what in steps])[0::4] == summed(closed)[0::4])
    closed.append(counts.close(len(steps), wall_us=int(now * 1e6)))
    whats = [what for _, what in steps]
    assert summed(closed) == expected(whats)
    with_a_turn = whats.count("good") + whats.count("null") + whats.count("hang")
    assert merged(window.latency for window in closed).count == with_a_turn
    assert counts.totals.requests == summed(closed)[0]


@given(happenings, st.integers(1, 600))
def test_the_sliding_window_holds_what_is_younger_than_its_length(
    steps: list[tuple[float, str]], window_s: int
) -> None:
    """Within one bucket's width: all that is younger for sure, nothing that is older for sure."""
    counts, now, happened = Counts("p", TARGET, wall_us=0), 1000.0, []
    counts.look_back(window_s)
    for after_s, what in steps:
        now += after_s
        add(counts, what, now)
        happened.append((now, what))
    window, first_bad_us = counts.slid(now, wall_us=10**12)
    width_s = max(window_s / BUCKETS_MAX, 0.1)
    long = BUCKETS_MAX * width_s
    surely = [what for at, what in happened if now - at <= long - width_s * 1.001]
    perhaps = [what for at, what in happened if now - at <= long + width_s * 1.001]
    for low, found, high in zip(expected(surely), summed([window]), expected(perhaps), strict=True):
        assert low <= found <= high
    assert window.latency.count <= window.requests
    bad = [at for at, what in happened if what in ("null", "hang") and now - at <= long - width_s * 1.001]
    assert not bad or (first_bad_us is not None and first_bad_us <= min(bad) * 1e6)


def test_beginning_anew_forgets_the_sliding_window_alone() -> None:
    counts = Counts("p", TARGET, wall_us=0)
    add(counts, "null", 5.0)
    counts.forget_sliding()
    add(counts, "good", 6.0)
    window, first_bad = counts.slid(6.0, wall_us=6_000_000)
    assert (window.requests, window.nulls, first_bad) == (1, 0, None)
    assert counts.close(0, wall_us=6_000_000).requests == 2


def test_a_window_is_kept_until_it_is_acknowledged_and_counted_once() -> None:
    ledger = Ledger()
    counts = ledger.counts_of("p", TARGET, wall_us=0)
    counts.good(1.0, 1.0)
    ledger.close(wall_us=1)
    assert [one.requests for one in ledger.closed] == [1]
    ledger.close(wall_us=2)
    assert len(ledger.closed) == 1  # an empty window is none
    counts.good(1.0, 2.0)
    ledger.close(wall_us=3)
    assert len(ledger.closed) == 2
    first, second = ledger.closed[0], ledger.closed[1]
    ledger.acknowledge((first.window,))
    ledger.acknowledge((first.window,))
    assert ledger.closed == (second,)


def test_windows_that_nobody_acknowledges_stay_few_and_lose_nothing() -> None:
    ledger = Ledger()
    counts = ledger.counts_of("p", TARGET, wall_us=0)
    for number in range(WINDOWS_KEPT_MAX * 3):
        counts.good(1.0, float(number))
        ledger.close(wall_us=number)
    assert len(ledger.closed) == WINDOWS_KEPT_MAX
    read = sum(one.requests for one in ledger.closed)
    ledger.acknowledge(tuple(one.window for one in ledger.closed))
    ledger.close(wall_us=10**6)
    assert read + sum(one.requests for one in ledger.closed) == WINDOWS_KEPT_MAX * 3


def test_a_slot_that_comes_back_goes_on_counting() -> None:
    ledger = Ledger()
    ledger.counts_of("p", TARGET, wall_us=0).good(1.0, 1.0)
    ledger.forget_all_but(set())
    assert ledger.counts_of("p", TARGET, wall_us=5).totals.requests == 1


def test_losses_within_a_minute_are_a_loop_and_the_last_one_names_it() -> None:
    losses = Losses()
    assert [losses.charge(Loss.CRASH, float(at)) for at in range(LOSSES_MAX - 1)] == [""] * (LOSSES_MAX - 1)
    assert losses.charge(Loss.HANG, 5.0) == "hang-loop"
    assert losses.total == LOSSES_MAX


def test_loads_that_are_late_in_a_row_are_a_loop_however_long_each_takes() -> None:
    losses = Losses()
    apart = 2 * LOSS_WINDOW_S
    assert [losses.charge(Loss.LATE, at * apart) for at in range(LATE_MAX)] == [""] * (LATE_MAX - 1) + ["load-deadline"]


@pytest.mark.parametrize("between", ["a load in time", "another loss"])
def test_a_row_of_late_loads_is_broken_by_anything_else(between: str) -> None:
    losses = Losses()
    for at in range(10 * LATE_MAX):
        if at % (LATE_MAX - 1) == 0 and between == "a load in time":
            losses.ready()
        other = at % LATE_MAX == 0 and between == "another loss"
        assert losses.charge(Loss.CRASH if other else Loss.LATE, at * LOSS_WINDOW_S) == ""


def test_losses_further_apart_are_no_loop() -> None:
    losses = Losses()
    apart = LOSS_WINDOW_S / (LOSSES_MAX - 1) + 1
    assert all(losses.charge(Loss.CRASH, at * apart) == "" for at in range(50))


def test_the_first_restart_comes_at_once_and_later_ones_wait() -> None:
    losses = Losses()
    delays = []
    for _ in range(9):
        losses.started(0.0)
        delays.append(losses.restart_delay_s(0.0))
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert losses.restart_delay_s(LOSS_WINDOW_S) == 0.0


def test_memory_counts_when_two_measurements_in_a_row_reached_it() -> None:
    """A peak of one moment does not; nor does what a worker held that is gone, nor what lies past the sliding window."""
    counts = Counts("p", TARGET, wall_us=0)
    counts.look_back(12)

    def slid(now: float) -> int:
        return counts.slid(now, wall_us=0)[0].memory_bytes_max

    for now, held in enumerate((100, 900, 100, 300, 200)):
        counts.memory(held, float(now))
    assert slid(4.0) == 200
    counts.memory(0, 5.0)
    counts.memory(900, 6.0)
    assert slid(6.0) == 200
    counts.memory(900, 7.0)
    assert slid(7.0) == 900
    assert slid(30.0) == 0
    assert counts.close(0, wall_us=1).memory_bytes_max == 900
    assert counts.close(1, wall_us=2).memory_bytes_max == 0


def test_the_time_that_a_slot_was_away_is_in_no_window_of_its() -> None:
    """Hours that nobody shadowed would pass a rollout's `hours_min`; rates would seem lower than they were."""
    ledger = Ledger()
    ledger.counts_of("p", TARGET, wall_us=0).good(1.0, 1.0)
    ledger.close(wall_us=10)
    ledger.counts_of("p", TARGET, wall_us=5_000).good(1.0, 2.0)
    ledger.counts_of("p", TARGET, wall_us=6_000)  # what is counted already keeps its beginning
    ledger.close(wall_us=7_000)
    assert [(one.opened_at, one.closed_at) for one in ledger.closed] == [(0, 10), (5_000, 7_000)]
