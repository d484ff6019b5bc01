"""When a device may download, and when it may begin to switch: by the clock on its own wall, apart, and never for going back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.core import windows
from holdfast_agent.core.commands import Command
from holdfast_agent.core.events import Moment, Tick
from holdfast_shared.wire.assignment import Condemned, Retry, Rule, TimeSpan, Windows
from support.playbook import BEGAN, SECOND, Playbook, assignment, bad, counts, own, ref, release, rule
from support.wanted import fetches, routes

BERLIN, NEW_YORK, LORD_HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")
NIGHT = TimeSpan(from_="22:00", to="04:00")
WEEK_NIGHTS = TimeSpan(from_="22:00", to="04:00", days=(0, 1, 2, 3))
AT_TWO = TimeSpan(from_="02:00", to="03:00")
HALF_PAST_TWO = TimeSpan(from_="02:30", to="04:00")
NOON = TimeSpan(from_="12:00", to="13:00")
SUNDAYS = TimeSpan(from_="00:00", to="00:00", days=(6,))


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * SECOND)


@pytest.mark.parametrize(
    ("span", "zone", "at", "is_open"),
    [
        # 2026-11-26 is a Thursday; Berlin is an hour ahead of UTC.
        (NIGHT, BERLIN, "2026-11-26T20:59:59", False),
        (NIGHT, BERLIN, "2026-11-26T21:00:00", True),
        (NIGHT, BERLIN, "2026-11-27T02:59:59", True),
        (NIGHT, BERLIN, "2026-11-27T03:00:00", False),
        (NIGHT, NEW_YORK, "2026-11-27T02:59:59", False),
        (NIGHT, NEW_YORK, "2026-11-27T03:00:00", True),
        (NIGHT, UTC, "2026-11-26T22:00:00", True),
        # A night belongs to the day on which it began: Thursday's is one of them, Friday's is not.
        (WEEK_NIGHTS, UTC, "2026-11-26T23:00:00", True),
        (WEEK_NIGHTS, UTC, "2026-11-27T03:00:00", True),
        (WEEK_NIGHTS, UTC, "2026-11-27T23:00:00", False),
        (WEEK_NIGHTS, UTC, "2026-11-28T03:00:00", False),
        (WEEK_NIGHTS, UTC, "2026-11-30T03:00:00", False),
        (WEEK_NIGHTS, UTC, "2026-11-30T22:00:00", True),
        # From a time to itself is a whole day.
        (SUNDAYS, UTC, "2026-11-28T23:59:59", False),
        (SUNDAYS, UTC, "2026-11-29T00:00:00", True),
        (SUNDAYS, UTC, "2026-11-29T23:59:59", True),
        (SUNDAYS, UTC, "2026-11-30T00:00:00", False),
        # Spring: Berlin's clocks go from 02:00 to 03:00 at 01:00 UTC. The hour is not there, and the window neither.
        (AT_TWO, BERLIN, "2026-03-29T00:59:59", False),
        (AT_TWO, BERLIN, "2026-03-29T01:00:00", False),
        (AT_TWO, BERLIN, "2026-03-30T00:30:00", True),
        (HALF_PAST_TWO, BERLIN, "2026-03-29T00:59:59", False),
        (HALF_PAST_TWO, BERLIN, "2026-03-29T01:00:00", True),
        (HALF_PAST_TWO, BERLIN, "2026-03-29T01:59:59", True),
        (HALF_PAST_TWO, BERLIN, "2026-03-29T02:00:00", False),
        # Autumn: from 03:00 back to 02:00 at 01:00 UTC. The hour is there twice, and the window too.
        (AT_TWO, BERLIN, "2026-10-24T23:59:59", False),
        (AT_TWO, BERLIN, "2026-10-25T00:00:00", True),
        (AT_TWO, BERLIN, "2026-10-25T01:30:00", True),
        (AT_TWO, BERLIN, "2026-10-25T02:00:00", False),
        # The other half of the world, on another day, and by half an hour.
        (AT_TWO, NEW_YORK, "2026-03-08T07:30:00", False),
        (AT_TWO, LORD_HOWE, "2026-10-03T15:29:59", False),
        (AT_TWO, LORD_HOWE, "2026-10-03T15:30:00", True),
        (AT_TWO, LORD_HOWE, "2026-10-03T16:00:00", False),
    ],
)  # fmt: skip
def test_what_the_wall_shows_decides(span: TimeSpan, zone: tzinfo, at: str, is_open: bool) -> None:
    assert windows.is_open((span,), utc(at), zone) is is_open


def test_without_a_span_it_is_always_open_and_any_of_several_is_enough() -> None:
    assert windows.is_open((), BEGAN.at, UTC)
    noon = TimeSpan(from_="12:00", to="13:00")
    assert windows.is_open((NIGHT, noon), utc("2026-11-26T12:30:00"), UTC)
    assert not windows.is_open((NIGHT, noon), utc("2026-11-26T13:30:00"), UTC)


TIMES = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
SPANS = st.builds(
    TimeSpan, from_=TIMES, to=TIMES, days=st.sets(st.integers(0, 6)).map(lambda days: tuple(sorted(days)))
)


@given(
    SPANS,
    st.integers(utc("2026-01-01T00:00:00"), utc("2027-01-01T00:00:00")),
    st.sampled_from([UTC, BERLIN, LORD_HOWE]),
)
def test_nothing_opens_or_closes_before_the_next_minute(span: TimeSpan, at_us: int, zone: tzinfo) -> None:
    left = windows.next_minute_us(at_us)
    assert 0 < left <= 60 * SECOND
    assert windows.is_open((span,), at_us, zone) == windows.is_open((span,), at_us + left - 1, zone)


@given(SPANS)
def test_a_span_and_the_rest_of_the_day_share_no_moment(span: TimeSpan) -> None:
    every = msgspec.structs.replace(span, days=(0, 1, 2, 3, 4, 5, 6))
    rest = msgspec.structs.replace(every, from_=span.to, to=span.from_)
    if span.from_ != span.to:
        for minute in range(0, 1440, 7):
            at = utc("2026-11-26T00:00:00") + minute * 60 * SECOND
            assert windows.is_open((every,), at, UTC) != windows.is_open((rest,), at, UTC)


# On a device.


class OnTheWall(Playbook):
    """A device in Berlin, whose documents hold for the year."""

    def assigned(
        self, *rules: Rule, condemned: Sequence[Condemned] = (), retries: Sequence[Retry] = ()
    ) -> list[Command]:
        self._seq += 1
        return self.document(
            assignment(
                *rules, seq=self._seq, condemned=condemned, retries=retries, not_after=utc("2027-01-01T00:00:00")
            )
        )

    def set_clock(self, text: str) -> None:
        self.now = Moment(at=utc(text), monotonic_us=self.now.monotonic_us)


def device_at(text: str, *, download: tuple[TimeSpan, ...] = ()) -> OnTheWall:
    playbook = OnTheWall(own_=replace(own(), zone=BERLIN, download=download))
    playbook.set_clock(text)
    playbook.connect()
    return playbook


def windowed(name: str, *, download: tuple[TimeSpan, ...] = (), switch: tuple[TimeSpan, ...] = ()) -> Rule:
    return msgspec.structs.replace(rule(name), windows=Windows(download=download, switch=switch))


def test_a_download_waits_for_its_window_and_a_switch_for_its_own() -> None:
    """The rule's windows: downloaded from 22:00 on, switched not before 02:00, by the wall."""
    device = device_at("2026-11-26T19:00:00")
    device.serve("1")
    assert fetches(device.assigned(windowed("2", download=(NIGHT,), switch=(AT_TWO,)))) == []
    assert device.report().waiting_for == "the download window 22:00-04:00"
    device.set_clock("2026-11-26T20:50:00")
    assert fetches(device.wait(590)) == []
    assert fetches(device.wait(20)) == ["2"]
    device.fetched("2")
    assert device.report().waiting_for == "the switch window 02:00-03:00"
    device.wait(3 * 3600)
    device.set_clock("2026-11-27T00:59:00")
    device.wait(59)
    assert device.pipeline.state == "staged", "its deadline does not count meanwhile"
    assert routes(device.wait(2)) == ("1", "", "2")
    assert device.pipeline.state == "self_testing"


def test_a_download_stops_at_the_end_of_its_window_and_goes_on_in_the_next() -> None:
    """Nothing counts as failed, and no deadline is missed: by the device's own configuration, this time."""
    device = device_at("2026-11-27T02:30:00", download=(NIGHT,))
    assert fetches(device.assigned(rule("1"))) == ["1"]
    assert fetches(device.wait(1790)) == []
    assert fetches(device.wait(10)) == ["stop"]
    assert (device.pipeline.state, device.pipeline.attempts) == ("idle", None)
    assert device.report().waiting_for == "the download window 22:00-04:00"
    assert fetches(device.wait(18 * 3600 - 120)) == []
    assert fetches(device.wait(120)) == ["1"]
    assert device.events("fetch_failed") == []


def test_both_windows_must_be_open_the_devices_own_and_the_rules() -> None:
    device = device_at("2026-11-27T00:00:00", download=(NIGHT,))
    assert fetches(device.assigned(windowed("1", download=(TimeSpan(from_="03:00", to="05:00"),)))) == []
    assert fetches(device.wait(2 * 3600)) == ["1"]
    assert fetches(device.wait(3600)) == ["stop"]


def test_a_clock_that_is_set_is_heeded_within_a_minute() -> None:
    device = device_at("2026-11-26T12:00:00")
    device.assigned(windowed("1", download=(NIGHT,)))
    device.set_clock("2026-11-26T22:00:00")
    assert fetches(device.wait(61)) == ["1"]


def test_leaving_a_condemned_release_waits_for_no_window() -> None:
    """Urgent: it is fetched, and switched to, in the middle of the day."""
    device = device_at("2026-11-26T21:30:00", download=(NIGHT,))
    device.serve("1")
    device.set_clock("2026-11-27T12:00:00")
    night = windowed("2", download=(NIGHT,), switch=(NIGHT,))
    assert fetches(device.assigned(night)) == []
    assert fetches(device.assigned(night, condemned=[bad("1")])) == ["2"]
    device.fetched("2")
    device.ready("2")
    assert device.pipeline.current == device.pipeline.serving
    assert device.slots[0] == "2"


def test_a_fallback_waits_for_no_window() -> None:
    device = device_at("2026-11-26T21:30:00")
    device.serve("1")
    device.assigned(windowed("2", switch=(NIGHT,)))
    device.to_trial("2")
    device.set_clock("2026-11-27T12:00:00")
    assert routes(device.tally(counts("2", requests=50, errors=50))) is not None
    assert device.pipeline.serving is not None
    assert device.pipeline.serving.release == ref("1")


def test_a_switch_that_began_in_its_window_is_carried_through() -> None:
    device = device_at("2026-11-27T02:59:50")
    device.serve("1")
    device.set_clock("2026-11-27T02:59:50")
    device.assigned(windowed("2", switch=(NIGHT,)))
    device.fetched("2")
    assert device.pipeline.state == "self_testing"
    device.wait(30)
    device.ready("1", "2")
    assert device.pipeline.state == "trial"


def test_a_slot_that_rotted_is_mended_at_any_time() -> None:
    device = device_at("2026-11-26T21:30:00", download=(NIGHT,))
    device.serve("1")
    device.set_clock("2026-11-27T12:00:00")
    assert fetches(device.failed("1", "damaged-blob")) == ["1"]


def staged_between_its_windows() -> OnTheWall:
    """2 came in the night and waits for noon; its agent was killed in the morning."""
    device = device_at("2026-11-26T21:30:00", download=(NIGHT,))
    device.serve("1")
    device.assigned(windowed("2", switch=(NOON,)))
    device.fetched("2")
    assert device.pipeline.state == "staged"
    device.set_clock("2026-11-27T08:00:00")
    return device


def test_what_was_staged_before_a_restart_needs_no_download_window_when_it_verifies() -> None:
    device = staged_between_its_windows()
    assert fetches(device.start(release("1"))) == ["look 2"]
    assert fetches(device.start(release("1"))) == ["look 2"], "nor when the agent is killed while it looks"
    device.connect()
    device.fetched("2")
    assert device.pipeline.state == "staged"
    assert device.report().waiting_for == "the switch window 12:00-13:00"
    device.set_clock("2026-11-27T11:00:00")
    device.play(Tick())
    device.ready("1", "2")
    assert device.pipeline.state == "trial"


def test_what_is_to_shadow_is_looked_for_on_the_disk_as_well() -> None:
    device = device_at("2026-11-26T21:30:00", download=(NIGHT,))
    device.serve("1")
    device.assigned(rule("2", "shadow"), rule("1"))
    device.fetched("2")
    device.set_clock("2026-11-27T08:00:00")
    assert fetches(device.start(release("1"))) == ["look 2"]


def test_what_is_not_all_here_is_looked_for_once_and_waits_for_its_window() -> None:
    """It has not failed, and nothing is told."""
    device = staged_between_its_windows()
    device.start(release("1"))
    device.connect()
    assert fetches(device.not_fetched("2", "outside-window")) == []
    assert (device.pipeline.state, device.pipeline.attempts) == ("idle", None)
    assert device.report().waiting_for == "the download window 22:00-04:00"
    assert fetches(device.wait(13 * 3600 - 180)) == []
    assert fetches(device.wait(180)) == ["2"]
    assert device.events("fetch_failed") == []


def test_what_came_to_nothing_between_its_windows_is_tried_again_from_the_disk() -> None:
    device = staged_between_its_windows()
    device.set_clock("2026-11-27T11:00:00")
    device.play(Tick())
    assert device.pipeline.state == "self_testing"
    assert fetches(device.wait(180)) == ["look 2"]
    assert [one.code for one in device.events("fetch_failed")] == ["self-test-unanswered"]


def test_what_a_first_install_waits_for_is_told_though_nothing_is_on_record() -> None:
    device = device_at("2026-11-26T12:00:00", download=(NIGHT,))
    device.assigned(rule("1"))
    assert device.record.pipelines == {}
    assert device.report().waiting_for == "the download window 22:00-04:00"
