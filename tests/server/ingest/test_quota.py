"""A device that floods is held to its quota, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_server.ingest.intake import Intake
from holdfast_server.ingest.quota import PER_MINUTE, SAVED_UP_MAX, Quota
from holdfast_server.ingest.tally import FLOODING_SHOWN, Tally
from holdfast_server.store import schema
from support.reporting import Feed, Ground, Reporter, sqlite_ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with sqlite_ground(tmp_path) as made:
        yield made


def spent(quota: Quota, device: str, asked: int, now_s: float) -> int:
    """How many of so many messages get through."""
    through = 0
    for _ in range(asked):
        if not quota.used_up(device, now_s):
            quota.charge(device, now_s)
            through += 1
    return through


def test_what_was_saved_up_goes_at_once_and_then_so_much_a_minute() -> None:
    """A whole spool after a week without a network is no flood."""
    quota = Quota()
    assert spent(quota, "a", 10_000, 0.0) == 10_000
    assert spent(quota, "a", 10_000, 0.0) == SAVED_UP_MAX - 10_000
    assert spent(quota, "a", 10_000, 60.0) == PER_MINUTE
    assert spent(quota, "a", 1, 60.4) == 0
    assert spent(quota, "b", 1, 60.4) == 1
    assert spent(quota, "a", 2 * SAVED_UP_MAX, 60.0 + 365 * 86_400) == SAVED_UP_MAX


def test_a_device_that_floods_costs_only_itself(ground: Ground) -> None:
    """The others' reports are stored; its own are up to its quota, each once, and the rest is told by device."""
    loud, *others = [Reporter(f"dev-{n}").enrol(ground.database) for n in range(5)]
    intake = Intake(ground, quota=Quota(saved_up_max=10, per_minute=1))
    flood = [(loud.device, loud.signed(windows=(loud.window(),))) for _ in range(40)]
    with Feed(ground, intake) as feed:
        feed.take(*flood[:20], *((one.device, one.signed(windows=(one.window(),))) for one in others), *flood[20:])
        feed.take(*flood[:10])
    with ground.database.read() as connection:
        stored = [row.device for row in connection.execute(schema.windows.select())]
    assert {one: stored.count(one) for one in set(stored)} == {loud.device: 10, **{one.device: 1 for one in others}}
    assert intake.tally.counts() == {"reports": 14, "doubled": 0, "dropped over-quota": 40}
    assert intake.tally.flooding() == {loud.device: 40}


def test_what_is_not_its_own_uses_up_nobodys_quota(ground: Ground) -> None:
    one, other = Reporter("dev-1").enrol(ground.database), Reporter("dev-2").enrol(ground.database)
    intake = Intake(ground, quota=Quota(saved_up_max=3, per_minute=1))
    with Feed(ground, intake) as feed:
        feed.take(*((one.device, other.signed()) for _ in range(10)), *((one.device, b"?") for _ in range(10)))
        feed.take(*((one.device, one.signed()) for _ in range(3)))
    assert intake.tally.counts()["reports"] == 3
    assert intake.tally.flooding() == {}


def test_what_nobody_signed_uses_up_no_quota_of_reports(ground: Ground) -> None:
    """The broker says who is there, for whoever writes it: it has an account of its own, and is nobody's flood."""
    one = Reporter("dev-1").enrol(ground.database)
    intake = Intake(ground, quota=Quota(saved_up_max=3, per_minute=1), hints=Quota(saved_up_max=5, per_minute=1))
    with Feed(ground, intake) as feed:
        feed.take(*((one.device, b"online") for _ in range(20)), kind="presence")
        feed.take(*((one.device, one.signed()) for _ in range(3)))
    assert intake.tally.counts() == {"reports": 3, "doubled": 0, "dropped presence-over-quota": 15}
    assert intake.tally.flooding() == {}


def test_only_a_few_of_those_that_flood_are_shown() -> None:
    tally = Tally()
    for number in range(20):
        for _ in range(number):
            tally.dropped("over-quota", source=f"dev-{number}", why="")
    assert list(tally.flooding()) == [f"dev-{number}" for number in range(19, 19 - FLOODING_SHOWN, -1)]
