"""Devices that report with keys of their own, and a store to compare before and after. The context is a `Bench`'s."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import URL, select, text

from holdfast_server import clock
from holdfast_server.core.rollout import Moment
from holdfast_server.ingest.intake import Arrived, Intake
from holdfast_server.store import outbox, schema
from holdfast_server.store.database import Database, parse_url, sqlite_url
from holdfast_server.store.outbox import Director, Stored
from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities
from holdfast_shared.histogram import Histogram
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import Assignment, ReleaseRef, Rule, Scope
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.report import TYPE, Event, PipelineReport, Report, SlotReport, Window
from support.rollout_bench import DIRECTOR, authorities

FLEET: Final = "test"
REGION: Final = "eu-west"
PIPELINE: Final = "digits"
BOOT: Final = "0b00f5a0-0000-4000-8000-000000000000"
RELEASE: Final = ReleaseRef(version="1.0.0", digest="sha256:" + "ab" * 32)
SECOND_US: Final = 1_000_000
EVENTUALLY_S: Final = 30.0


class Ground:
    """The context of a server without rollouts: a database, keys, and the real clock."""

    def __init__(self, url: URL) -> None:
        self.database = Database(url)
        self.database.migrate()
        self.authorities: Authorities = authorities()
        self.director = Director(FLEET, DIRECTOR, 1)
        self.now: Callable[[], Moment] = clock.moment
        self.shadow_first = None

    def issue(self, pipeline: str = PIPELINE, *, region: str = REGION, version: str = "1.0.0", **fields: Any) -> Stored:
        release = msgspec.structs.replace(RELEASE, version=version)
        document = Assignment(
            fleet=FLEET, scope=Scope(region=region), pipeline=pipeline, epoch=0, seq=0, issued_at=0, not_after=0,
            rules=(Rule(mode="serve", release=release),), **fields,
        )  # fmt: skip
        with self.database.write() as connection:
            outbox.issue(connection, self.director, [document], self.now().at)
            return next(
                one for one in outbox.stored_documents(connection, f"region/{region}") if one.pipeline == pipeline
            )


@contextlib.contextmanager
def sqlite_ground(tmp_path: Path) -> Iterator[Ground]:
    """On SQLite, closed at the end."""
    ground = Ground(sqlite_url(tmp_path / "server.db"))
    try:
        yield ground
    finally:
        ground.database.close()


@contextlib.contextmanager
def postgres_ground(url: str) -> Iterator[Ground]:
    """On PostgreSQL, in a schema of its own that is dropped at the end."""
    name = f"ingest_{time.monotonic_ns()}"
    whole = Database(parse_url(url))
    with whole.write() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    ground = Ground(parse_url(f"{url}?options=-csearch_path%3D{name}"))
    try:
        yield ground
    finally:
        ground.database.close()
        with whole.write() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        whole.close()


class Feed:
    """An intake that is fed and awaited: `take` returns once everything offered was acknowledged."""

    def __init__(self, ground: Ground, intake: Intake | None = None) -> None:
        self.intake = intake if intake is not None else Intake(ground)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.intake.run, args=(self._stop,))
        self.acknowledged: list[int] = []

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def take(self, *messages: tuple[str, bytes], kind: Any = "health") -> None:
        left = threading.Semaphore(0)
        for device, payload in messages:
            assert self.intake.offer(Arrived(device, kind, payload, left.release))
        for _ in messages:
            assert left.acquire(timeout=30)

    @property
    def counts(self) -> dict[str, int]:
        return self.intake.tally.counts()


class Reporter:
    """A device: enrolled on request, with numbered reports signed by its own key."""

    def __init__(self, device: str = "dev-1", *, region: str = REGION, incarnation: str = "0" * 16) -> None:
        self.device, self.region, self.incarnation = device, region, incarnation
        self.key = PrivateKey.generate()
        self.numbers = itertools.count(1)
        self.windows = itertools.count(1)

    def enrol(self, database: Database) -> Reporter:
        membership = Membership(
            fleet=FLEET, device=self.device, region=self.region, counter=1,
            public_key=self.key.public.to_text(), issued_at=1,
        )  # fmt: skip
        with database.write() as connection:
            connection.execute(
                schema.memberships.insert().values(
                    device=self.device, region=self.region, stage="production", counter=1,
                    public_key=membership.public_key, received_at=clock.now_us(), envelope=b"",
                    labels=strict_json.encode(membership.selectable).decode(),
                )
            )  # fmt: skip
        return self

    def report(self, **fields: Any) -> Report:
        given: dict[str, Any] = {
            "fleet": FLEET, "device": self.device, "incarnation": self.incarnation, "number": next(self.numbers),
            "kind": "health", "sent_at": clock.now_us(), "sent_monotonic_us": 1, "boot": BOOT,
            "membership_counter": 1, "agent_version": "0.1.0",
            "pipelines": (PipelineReport(pipeline=PIPELINE, state="idle", serving=slot(), current=slot()),),
        }  # fmt: skip
        return Report(**(given | fields))

    def sign(self, report: Report | bytes, *, key: PrivateKey | None = None) -> bytes:
        payload = report if isinstance(report, bytes) else strict_json.encode(report)
        return signing.sign(payload, TYPE, [key or self.key])

    def sign_other(self, honest: Report, other: Report) -> bytes:
        """The signature over `honest`, around `other`."""
        envelopes = [json.loads(self.sign(report)) for report in (honest, other)]
        return json.dumps({**envelopes[0], "payload": envelopes[1]["payload"]}).encode()

    def signed(self, **fields: Any) -> bytes:
        return self.sign(self.report(**fields))

    def window(self, requests: int = 30, **fields: Any) -> Window:
        given: dict[str, Any] = {
            "window": next(self.windows), "pipeline": PIPELINE, "release": RELEASE, "environment": "system",
            "opened_at": 1_000_000, "closed_at": 3_000_000, "requests": requests,
            "latency": Histogram(((100, requests),)),
        }  # fmt: skip
        return Window(**(given | fields))


def slot(release: ReleaseRef = RELEASE) -> SlotReport:
    return SlotReport(release=release, environment="system", ready=True)


def event(**fields: Any) -> Event:
    given: dict[str, Any] = {
        "kind": "fell_back", "at": 5, "at_monotonic_us": 5, "boot": BOOT, "pipeline": PIPELINE, "release": RELEASE,
        "environment": "system", "code": "guardrail-null-rate",
    }  # fmt: skip
    return Event(**(given | fields))


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with database.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in schema.metadata.sorted_tables
        }


def eventually(what: Callable[[], Any], *, within_s: float = EVENTUALLY_S) -> Any:
    """The first true answer of `what`, asked until the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)
    return found
