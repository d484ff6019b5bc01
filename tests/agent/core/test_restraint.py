"""What holds a download back without being anybody's failure: a cap on its speed, and a metered network's bytes of the day."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.core import backoff, budget
from holdfast_agent.core.budget import NOTHING_SPENT, Spent
from holdfast_agent.core.commands import StartFetch
from holdfast_agent.core.events import FetchEnded
from holdfast_agent.core.pace import BURST_US, Pace
from support.playbook import PIPELINE, SECOND, Playbook, bad, rule, target
from support.wanted import fetches

BERLIN = ZoneInfo("Europe/Berlin")


@given(
    st.integers(4_096, 10**9),
    st.lists(st.tuples(st.integers(0, 65_536), st.integers(0, 5 * SECOND)), min_size=1, max_size=60),
)
def test_whoever_waits_as_told_never_passes_the_cap_by_more_than_the_burst(
    bytes_per_s: int, pieces: list[tuple[int, int]]
) -> None:
    pace, now, began, came = Pace(bytes_per_s), 10**12, 10**12, 0
    for size, idle_us in pieces:
        now += idle_us
        pace, came = pace.after(size, now), came + size
        now += pace.wait_us(now)
        allowed = bytes_per_s * (now - began + BURST_US) / SECOND
        assert came <= allowed + len(pieces), "a byte for each rounding"


def test_a_line_that_is_slower_than_the_cap_never_waits() -> None:
    pace, now = Pace(100_000), 10**12
    for _ in range(50):
        pace = pace.after(9_000, now)
        now += SECOND // 10
        assert pace.wait_us(now) == 0


@pytest.mark.parametrize(
    ("spent", "day", "left"),
    [
        (NOTHING_SPENT, "2026-11-26", 100),
        (Spent(day="2026-11-26", size_bytes=40), "2026-11-26", 60),
        (Spent(day="2026-11-26", size_bytes=140), "2026-11-26", 0),
        (Spent(day="2026-11-25", size_bytes=100), "2026-11-26", 100),
        (Spent(day="2030-01-01", size_bytes=100), "2026-11-26", 100),
    ],
    ids=["nothing yet", "some", "all and more", "another day", "a clock that was wrong"],
)
def test_a_day_has_its_bytes(spent: Spent, day: str, left: int) -> None:
    assert budget.left_bytes(budget.on_day(spent, day), 100) == left


@pytest.mark.parametrize(
    ("local", "hours"),
    [
        (datetime(2026, 11, 26, 0, 0, tzinfo=BERLIN), 24),
        (datetime(2026, 11, 26, 23, 0, tzinfo=BERLIN), 1),
        (datetime(2026, 3, 29, 0, 0, tzinfo=BERLIN), 23),
        (datetime(2026, 10, 25, 0, 0, tzinfo=BERLIN), 25),
    ],
)
def test_a_day_ends_at_midnight_on_the_wall(local: datetime, hours: int) -> None:
    at_us = int(local.timestamp() * SECOND)
    assert budget.day_of(at_us, BERLIN) == local.date().isoformat()
    assert budget.until_next_day_s(at_us, BERLIN) == timedelta(hours=hours).total_seconds()


def over(device: Playbook, name: str, wait_s: float = 36_000.0) -> list[str]:
    ended = FetchEnded(
        pipeline=PIPELINE,
        target=target(name),
        ok=False,
        draw=0.5,
        code="over-budget",
        detail="the bytes for today are used up",
        retry_after_s=wait_s,
    )
    return fetches(device.play(ended))


def test_a_used_up_budget_waits_without_counting_as_failed() -> None:
    """It is looked at again every quarter of an hour, for the device may be elsewhere by then, and no wait grows."""
    device = Playbook()
    device.connect()
    device.assigned(rule("1"))
    for _ in range(5):
        assert over(device, "1") == []
        assert (device.pipeline.state, device.pipeline.attempts) == ("idle", None)
        assert device.report().waiting_for == "the bytes for today are used up"
        assert fetches(device.wait(backoff.HELD_US / SECOND - 70)) == []
        assert fetches(device.wait(70)) == ["1"]
    device.to_trial("1")
    assert device.report().waiting_for == ""
    assert device.events("fetch_failed") == []


def test_the_last_minute_of_a_day_is_waited_for_and_no_longer() -> None:
    device = Playbook()
    device.connect()
    device.assigned(rule("1"))
    over(device, "1", wait_s=40)
    assert fetches(device.wait(39)) == []
    assert fetches(device.wait(2)) == ["1"]


def test_an_urgent_fetch_says_so_and_is_held_no_longer_than_any_urgent_one() -> None:
    """What serves is condemned: the wait that began before is over, and the next is short; never a busy loop."""
    device = Playbook()
    device.connect()
    device.serve("1")
    started = [one for one in device.assigned(rule("2")) if isinstance(one, StartFetch)]
    assert [one.urgent for one in started] == [False]
    over(device, "2")
    done = device.assigned(rule("2"), condemned=[bad("1")])
    assert [one.urgent for one in done if isinstance(one, StartFetch)] == [True]
    assert over(device, "2") == []
    assert fetches(device.wait(backoff.URGENT_CAP_US / SECOND - 1)) == []
    assert fetches(device.wait(2)) == ["2"]
