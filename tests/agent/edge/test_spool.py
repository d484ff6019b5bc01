"""The spool: what was put is there after any crash, what is too much goes in the stated order, damage is moved aside and said."""

from __future__ import annotations

import errno
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge.spool import Spool, Spooled

# Puts reports for ever, acknowledges every third, and says each only when it is done.
WRITER = """
import sys
from pathlib import Path
from holdfast_agent.edge.spool import Spool
spool = Spool(Path(sys.argv[1]), 100_000)
number = int(sys.argv[2])
while True:
    spool.put(number, "event", b"%d" % number * 200)
    print("put", number, flush=True)
    if number % 3 == 0:
        spool.acknowledge(number)
        print("gone", number, flush=True)
    number += 1
"""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool.db", 5)
    yield opened
    opened.close()


def numbers(spool: Spool) -> list[int]:
    return [report.number for report in spool.oldest(1_000_000)]


def test_reports_come_back_by_number_as_they_were_put(spool: Spool) -> None:
    spool.put(2, "event", b"\x00two")
    spool.put(1, "health", b"one")
    assert spool.oldest(10) == [Spooled(1, "health", b"one"), Spooled(2, "event", b"\x00two")]
    assert spool.oldest(1) == [Spooled(1, "health", b"one")]
    assert spool.count() == 2


def test_every_method_may_be_repeated(spool: Spool) -> None:
    spool.put(1, "health", b"first")
    spool.put(1, "health", b"second")
    assert spool.oldest(2) == [Spooled(1, "health", b"first")]
    spool.acknowledge(1)
    spool.acknowledge(1)
    assert spool.count() == 0
    spool.close()
    spool.close()


def test_a_full_spool_gives_up_its_oldest_health_first_and_events_last(spool: Spool) -> None:
    for number, kind in enumerate(["event", "health", "event", "health", "event"]):
        spool.put(number, kind, b"x")
    spool.put(5, "event", b"x")
    assert numbers(spool) == [0, 2, 3, 4, 5]
    spool.put(6, "event", b"x")
    assert numbers(spool) == [0, 2, 4, 5, 6]
    spool.put(7, "health", b"x")  # nothing but events is there: the newcomer goes
    assert numbers(spool) == [0, 2, 4, 5, 6]
    spool.put(8, "event", b"x")
    assert numbers(spool) == [2, 4, 5, 6, 8]
    assert spool.count() == 5


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 1000, size_bytes_max=1000)
    for number in range(10):
        spool.put(number, "health", b"x" * 300)
    assert numbers(spool) == [7, 8, 9]
    spool.close()
    spool = Spool(tmp_path / "spool.db", 1000, size_bytes_max=1000)  # the sum is found again
    spool.put(10, "health", b"x" * 300)
    assert numbers(spool) == [8, 9, 10]
    spool.close()


def test_reports_outlive_their_process(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.db", 10)
    first.put(7, "event", b"kept")
    first.close()
    second = Spool(tmp_path / "spool.db", 10)
    assert second.oldest(10) == [Spooled(7, "event", b"kept")]
    assert second.count() == 1
    second.close()


@pytest.mark.parametrize("content", [b"this is no database at all" * 500, b"", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_moved_aside_begun_anew_and_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)
    said: list[str] = []
    spool = Spool(path, 10, on_damage=said.append)
    spool.put(1, "event", b"goes on")
    assert numbers(spool) == [1]
    spool.close()
    if content:  # an empty file is a database that was not begun yet
        assert "moved to" in said[0]
        assert path.with_name("spool.db.damaged").read_bytes() == content


def test_another_programs_database_is_moved_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.db") as other:
        other.execute("CREATE TABLE reports (something TEXT)")
    other.close()
    said: list[str] = []
    spool = Spool(tmp_path / "spool.db", 10, on_damage=said.append)
    spool.put(1, "event", b"goes on")
    assert len(said) == 1
    spool.close()


def test_damage_while_it_is_open_is_answered_too(tmp_path: Path) -> None:
    """The file is overwritten under the open spool: the next report is kept all the same."""
    path = tmp_path / "spool.db"
    said: list[str] = []
    spool = Spool(path, 1000, on_damage=said.append)
    for number in range(200):
        spool.put(number, "event", b"x" * 4000)
    spool._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as stream:
        stream.write(b"\xff" * (64 * 4096))
    spool._opened().execute("PRAGMA cache_size = 0")
    spool.put(1000, "event", b"after")
    assert spool.oldest(1000)[-1] == Spooled(1000, "event", b"after")
    assert len(said) == 1
    assert spool.count() == len(spool.oldest(1000))
    spool.close()


def test_a_full_disk_is_an_oserror_and_loses_nothing_that_was_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", 1000)
    spool.put(1, "event", b"there")
    database = spool._opened()
    database.execute("PRAGMA max_page_count = 5")  # SQLite then says what it says of a full disk
    with pytest.raises(OSError, match="full") as refused:
        spool.put(2, "event", b"x" * 100_000)
    assert refused.value.errno == errno.ENOSPC
    assert numbers(spool) == [1]
    assert spool.count() == 1
    database.execute("PRAGMA max_page_count = 100000")
    spool.put(2, "event", b"x" * 100_000)
    assert numbers(spool) == [1, 2]
    spool.close()


def test_a_report_is_flushed_to_the_disk_before_put_returns(spool: Spool) -> None:
    """No test can cut the power; it can see that SQLite was told to expect it (FULL is 2)."""
    assert spool._opened().execute("PRAGMA synchronous").fetchone() == (2,)
    assert spool._opened().execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
def test_what_was_put_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    """Killed over and over in mid-write: every report that `put` returned for is there, every acknowledged one is gone."""
    path = tmp_path / "spool.db"
    put: set[int] = set()
    gone: set[int] = set()
    chance = random.Random(7)
    for turn in range(12):
        start = 1_000_000 * turn + 1
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            wanted = chance.randrange(1, 60)
            for count, line in enumerate(writer.stdout):
                if count == wanted:
                    writer.send_signal(signal.SIGKILL)
                if line.endswith("\n"):
                    word, _, number = line.partition(" ")
                    (put if word == "put" else gone).add(int(number))
        said: list[str] = []
        spool = Spool(path, 100_000, on_damage=said.append)
        there = set(numbers(spool))
        assert said == []
        last = max(put)
        unsaid = {last} if last % 3 == 0 else set()  # killed between acknowledging it and saying so
        assert not put - gone - unsaid - there, "a report was lost"
        assert not gone & there, "an acknowledged report came back"
        gone |= unsaid - there
        spool.close()
