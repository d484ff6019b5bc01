"""Reports into real tables: counted once in any order, and whatever is wrong with one changes nothing and harms nobody."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_server.ingest import intake as intake_module
from holdfast_server.ingest.intake import QUEUE_MAX, UNACKNOWLEDGED_MAX, Arrived, Intake
from holdfast_server.ingest.rows import Measures
from holdfast_server.store import database as database_module
from holdfast_server.store import devices, outbox, schema
from holdfast_shared import signing, strict_json
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import Scope
from holdfast_shared.wire.report import AcceptedDocument, DriftCounts, Report
from support.reporting import (
    PIPELINE,
    REGION,
    Feed,
    Ground,
    Reporter,
    event,
    eventually,
    everything,
    postgres_ground,
    slot,
    sqlite_ground,
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    if request.param == "sqlite":
        with sqlite_ground(tmp_path) as made:
            yield made
    else:
        with postgres_ground(request.getfixturevalue("postgres_url")) as made:
            yield made


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Ground]:
    with sqlite_ground(tmp_path) as made:
        yield made


@pytest.fixture
def feed(ground: Ground) -> Iterator[Feed]:
    with Feed(ground) as made:
        yield made


def newest(ground: Ground, device: str) -> Report:
    with ground.database.read() as connection:
        found = devices.load_one(connection, device)
    assert found is not None
    assert found.report is not None
    return found.report


def count(ground: Ground, table: Any) -> int:
    with ground.database.read() as connection:
        return len(connection.execute(table.select()).all())


def test_a_report_becomes_rows_by_which_others_judge(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    feed.take((device.device, device.signed(windows=(device.window(30, nulls=2),), events=(event(),))))
    with ground.database.read() as connection:
        window = connection.execute(schema.windows.select()).one()
        happened = connection.execute(schema.device_events.select()).one()
        found = devices.load_one(connection, device.device)
    assert (window.requests, window.nulls, window.release_digest) == (30, 2, slot().release.digest)
    assert json.loads(window.latency) == {"bins": [[100, 30]]}
    assert (happened.kind, happened.code, happened.position) == ("fell_back", "guardrail-null-rate", 0)
    assert found is not None
    assert found.last_seen_at is not None
    assert found.report is not None
    assert (found.report.windows, found.report.events) == ((), ())
    assert found.pipeline(PIPELINE) is not None


def test_what_a_window_measures_is_kept_with_it(ground: Ground, feed: Feed) -> None:
    """And a window that measures nothing takes no room for it."""
    device = Reporter().enrol(ground.database)
    drift = (DriftCounts(feature="ink", counts=(20, 10), expected=(50, 50)),)
    told = device.window(30, labelled=9, agreed=8, confidence=(0,) * 19 + (30,), drift=drift)
    feed.take((device.device, device.signed(windows=(told, device.window(30)))))
    with ground.database.read() as connection:
        rows = connection.execute(schema.windows.select().order_by(schema.windows.c.window)).all()
    kept = msgspec.json.decode(rows[0].measures, type=Measures)
    assert (kept.labelled, kept.agreed, kept.confidence[-1], kept.drift) == (9, 8, 30, drift)
    assert rows[1].measures == ""


def test_any_order_and_any_repetition_ends_in_the_same_rows(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    reports = [
        device.report(sent_at=1_000 + n, windows=(device.window(n + 1),), events=(event(at=n),)) for n in range(12)
    ]
    messages = [(device.device, device.sign(report)) for report in reports] * 3
    random.Random(7).shuffle(messages)
    for start in range(0, len(messages), 5):
        feed.take(*messages[start : start + 5])
    assert count(ground, schema.windows) == count(ground, schema.device_events) == 12
    assert count(ground, schema.reports_seen) == 12
    assert newest(ground, device.device).number == 12
    assert (feed.counts["reports"], feed.counts["doubled"]) == (12, 24)


def test_the_same_window_in_two_reports_counts_once(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    window = device.window()
    feed.take((device.device, device.signed(windows=(window,))), (device.device, device.signed(windows=(window,))))
    assert count(ground, schema.windows) == 1


def test_a_replayed_report_keeps_nobody_alive(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    signed = device.signed(windows=(device.window(),), events=(event(),))
    feed.take((device.device, signed))
    before = everything(ground.database)
    feed.take((device.device, signed), (device.device, signed))
    assert everything(ground.database) == before


def test_a_late_report_adds_its_evidence_and_leaves_the_newest_state(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    early = device.report(windows=(device.window(),))
    late = device.report()
    feed.take((device.device, device.sign(late)))
    feed.take((device.device, device.sign(early)))
    assert newest(ground, device.device).number == late.number
    assert count(ground, schema.windows) == 1


def test_a_new_incarnation_replaces_when_it_was_sent_later(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    feed.take((device.device, device.signed(number=900, sent_at=2_000)))
    feed.take((device.device, device.signed(number=1, sent_at=3_000, incarnation="a" * 16)))
    assert newest(ground, device.device).incarnation == "a" * 16
    feed.take((device.device, device.signed(number=901, sent_at=2_500)))
    assert newest(ground, device.device).incarnation == "a" * 16


def test_a_device_that_lost_its_state_and_its_clock_is_believed_after_a_silence(ground: Ground, feed: Feed) -> None:
    """Its clock says earlier than before, and it speaks all the while. An incarnation of before does not come back that way."""
    device = Reporter().enrol(ground.database)
    feed.take((device.device, device.signed(number=1, sent_at=1_000, incarnation="b" * 16)))
    feed.take((device.device, device.signed(number=1, sent_at=9_000)))
    feed.take((device.device, device.signed(number=1, sent_at=500, incarnation="a" * 16)))
    assert newest(ground, device.device).incarnation == "0" * 16
    with ground.database.write() as connection:  # more than five minutes go by
        seen = schema.reports_seen
        connection.execute(seen.update().values(received_at=seen.c.received_at - 301 * 1_000_000))
    feed.take((device.device, device.signed(number=2, sent_at=600, incarnation="b" * 16)))
    assert newest(ground, device.device).incarnation == "0" * 16
    feed.take((device.device, device.signed(number=2, sent_at=700, incarnation="a" * 16)))
    assert newest(ground, device.device).incarnation == "a" * 16


# ---------------------------------------------------------------- what is refused
def _text(report: Report) -> bytes:
    return strict_json.encode(report)


WRONG: dict[str, tuple[Callable[[Reporter], bytes], str]] = {
    "empty": (lambda _: b"", "malformed"),
    "not JSON": (lambda _: b"\xff\x00", "malformed"),
    "truncated": (lambda d: d.signed()[:-20], "malformed"),
    "a truncated payload": (lambda d: d.sign(_text(d.report())[:-9]), "malformed"),
    "oversized": (lambda d: d.sign(_text(d.report()) + b" " * 200_000), "malformed"),
    "an oversized payload": (lambda d: d.sign(_text(d.report()) + b" " * 132_000), "malformed"),
    "unsigned": (lambda d: _text(d.report()), "malformed"),
    "another document": (lambda d: signing.sign(_text(d.report()), "holdfast.command/1", [d.key]), "malformed"),
    "signed by a stranger": (lambda d: d.sign(d.report(), key=PrivateKey.generate()), "untrusted"),
    "forged": (lambda d: d.sign_other(d.report(), d.report(agent_version="6.6.6")), "untrusted"),
    "NaN": (lambda d: d.sign(_text(d.report()).replace(b'"sent_at":', b'"x":NaN,"sent_at":')), "malformed"),
    "a key twice": (lambda d: d.sign(_text(d.report()).replace(b'"boot":', b'"boot":"b","boot":', 1)), "malformed"),
    "too deep": (lambda d: d.sign(_text(d.report())[:-1] + b',"x":' + b"[" * 20 + b"]" * 20 + b"}"), "malformed"),
    "a field missing": (lambda d: d.sign(_text(d.report()).replace(b'"boot":', b'"boo":', 1)), "malformed"),
    "a negative number": (lambda d: d.sign(_text(d.report(number=5)).replace(b'"number":5', b'"number":-5')), "malformed"),
    "a number too large": (
        lambda d: d.sign(_text(d.report(number=5)).replace(b'"number":5', b'"number":9007199254740993')),
        "malformed",
    ),
    "U+0000": (lambda d: d.signed(agent_version="0.1\x00"), "malformed"),
    "more requests than can be": (lambda d: d.signed(windows=(d.window(10**9),)), "malformed"),
    "another fleet": (lambda d: d.signed(fleet="other"), "untrusted"),
    "another device": (lambda d: d.signed(device="dev-2"), "untrusted"),
    "another kind": (lambda d: d.signed(kind="event"), "untrusted"),
    "an unknown critical field": (lambda d: d.signed(critical=("tomorrow",)), "not-supported-yet"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_acknowledged_counted_and_changes_nothing(sqlite: Ground, name: str) -> None:
    device = Reporter().enrol(sqlite.database)
    Reporter("dev-2").enrol(sqlite.database)
    with Feed(sqlite) as feed:
        feed.take((device.device, device.signed()))
        before = everything(sqlite.database)
        make, code = WRONG[name]
        feed.take((device.device, make(device)))
        assert everything(sqlite.database) == before
        assert feed.counts[f"dropped {code}"] == 1


def test_an_unknown_device_is_refused_even_with_a_good_signature(sqlite: Ground) -> None:
    stranger = Reporter("stranger")
    with Feed(sqlite) as feed:
        before = everything(sqlite.database)
        feed.take((stranger.device, stranger.signed()))
        feed.take((stranger.device, b"online"), kind="presence")
        assert everything(sqlite.database) == before
        assert feed.counts["dropped unknown-device"] == 2


def test_a_device_cannot_speak_on_anothers_topic(sqlite: Ground) -> None:
    one, other = Reporter("dev-1").enrol(sqlite.database), Reporter("dev-2").enrol(sqlite.database)
    with Feed(sqlite) as feed:
        before = everything(sqlite.database)
        feed.take((other.device, one.signed()), (other.device, one.signed(device=other.device)))
        assert everything(sqlite.database) == before


def test_bad_ones_among_fifty_good_harm_nobody(ground: Ground, feed: Feed) -> None:
    good = [Reporter(f"dev-{n}").enrol(ground.database) for n in range(50)]
    messages = [(one.device, one.signed(windows=(one.window(),))) for one in good]
    for place, (make, _) in zip(itertools.cycle(range(0, 50, 7)), WRONG.values(), strict=False):
        messages.insert(place, (good[0].device, make(good[0])))
    feed.take(*messages)
    assert feed.counts["reports"] == 50
    assert count(ground, schema.device_state) == count(ground, schema.windows) == 50


def test_one_that_the_database_refuses_is_found_and_the_others_are_stored(sqlite: Ground) -> None:
    """A refusal that no check of ours foresees: here by a trigger of the database itself."""
    good = [Reporter(f"dev-{n}").enrol(sqlite.database) for n in range(20)]
    with sqlite.database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER t BEFORE INSERT ON windows WHEN new.requests = 666 BEGIN SELECT raise(ABORT, 'no'); END"
        )
    with Feed(sqlite) as feed:
        feed.take(
            *[(one.device, one.signed(windows=(one.window(666 if n == 13 else 30),))) for n, one in enumerate(good)]
        )
        assert feed.counts["reports"] == 19
        assert feed.counts["dropped unstorable"] == 1
    assert count(sqlite, schema.reports_seen) == count(sqlite, schema.windows) == 19


def test_one_line_in_a_while_says_what_is_dropped(sqlite: Ground, caplog: pytest.LogCaptureFixture) -> None:
    device = Reporter().enrol(sqlite.database)
    with Feed(sqlite) as feed:
        feed.take(*[(device.device, b"?")] * 40)
        assert feed.counts["dropped malformed"] == 40
    assert len([line for line in caplog.messages if "dropped" in line]) == 1


# ---------------------------------------------------------------- what devices hold
def accepted(seq: int, *, epoch: int = 1, region: str = REGION) -> AcceptedDocument:
    return AcceptedDocument(scope=Scope(region=region), pipeline=PIPELINE, epoch=epoch, seq=seq)


def order(ground: Ground) -> tuple[int, int]:
    with ground.database.read() as connection:
        row = connection.execute(schema.assignments.select()).one()
    return row.epoch, row.seq


def test_a_document_is_issued_above_what_a_device_holds(ground: Ground, feed: Feed) -> None:
    """A restored database recovers by what devices report; an order that cannot be is not believed."""
    ground.issue()
    device = Reporter().enrol(ground.database)
    feed.take(
        (device.device, device.signed(accepted=(accepted(41),))),
        (device.device, device.signed(accepted=(accepted(2**52),))),
        (device.device, device.signed(accepted=(accepted(7, epoch=2),))),
        (device.device, device.signed(accepted=(accepted(900, region="us-east"),))),
    )
    eventually(lambda: order(ground) == (1, 42))
    assert feed.counts["reports"] == 4
    assert feed.counts["dropped order-ahead"] == 2
    with ground.database.read() as connection:
        assert [(row.scope, row.seq) for row in connection.execute(schema.seq_floor.select())] == [
            (f"region/{REGION}", 41)
        ]
        assert len(outbox.stored_documents(connection, unpublished=True)) == 1


# ---------------------------------------------------------------- presence
def test_presence_is_kept_as_a_hint_beside_what_the_device_said(ground: Ground, feed: Feed) -> None:
    device = Reporter().enrol(ground.database)
    feed.take((device.device, b"online"), kind="presence")
    with ground.database.read() as connection:
        found = devices.load_one(connection, device.device)
    assert found is not None
    assert (found.presence, found.last_seen_at, found.report) == ("online", None, None)
    feed.take((device.device, device.signed()))
    feed.take((device.device, b"online"), (device.device, b"offline"), kind="presence")
    with ground.database.read() as connection:
        found = devices.load_one(connection, device.device)
    assert found is not None
    assert found.presence == "offline"
    assert found.report is not None
    before = everything(ground.database)
    feed.take((device.device, b"offline"), (device.device, b"perhaps"), kind="presence")
    assert everything(ground.database) == before


# ---------------------------------------------------------------- backpressure
def test_while_the_database_is_away_nothing_is_acknowledged_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process holds the writer's lock for longer than we wait; then it lets go."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 20)
    monkeypatch.setattr(intake_module, "RETRY_S", 0.02)
    acknowledged = threading.Event()
    with sqlite_ground(tmp_path) as ground:
        device = Reporter().enrol(ground.database)
        with Feed(ground) as feed:
            with ground.database.engine.execution_options(holdfast_begin="BEGIN IMMEDIATE").begin():
                assert feed.intake.offer(Arrived(device.device, "health", device.signed(), acknowledged.set))
                eventually(lambda: any("takes nothing in" in line for line in caplog.messages))
                assert not acknowledged.is_set()
            assert acknowledged.wait(30)
        assert count(ground, schema.reports_seen) == 1


def test_what_nobody_acknowledges_gives_way_and_what_is_acknowledged_finds_room(
    sqlite: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "OFFER_S", 0.01)
    intake = Intake(sqlite)  # nobody empties it
    for _ in range(QUEUE_MAX):
        assert intake.offer(Arrived("dev-1", "health", b"", None))
    assert intake.tally.counts()["dropped queue-full"] == QUEUE_MAX - UNACKNOWLEDGED_MAX
    taken = [intake.offer(Arrived("dev-1", "health", b"", lambda: None)) for _ in range(UNACKNOWLEDGED_MAX + 1)]
    assert taken == [True] * UNACKNOWLEDGED_MAX + [False]
