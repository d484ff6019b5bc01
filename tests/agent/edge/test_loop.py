"""The loop's promises: the record first or nothing, reporting that fails changes nothing, and what it says to whom."""

from __future__ import annotations

import errno
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from holdfast_agent.core import events, step
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import Record
from holdfast_agent.edge import loop as loop_file
from holdfast_agent.edge.broker import Received
from holdfast_agent.edge.fetching import FetchEnded
from holdfast_agent.edge.loop import Inbox, Loop
from holdfast_agent.edge.polling import Polled
from holdfast_gateway.control import AcknowledgeWindows, Status, ToGateway, Windows
from holdfast_shared.wire.assignment import Assignment
from holdfast_shared.wire.release import Release
from holdfast_shared.wire.report import Report
from support.playbook import BEGAN, SECOND, assignment, counts, digest, own, release, rule, signed


@dataclass
class World:
    """Everything the loop acts on, noted in order; `full` makes the disk refuse."""

    done: list[str] = field(default_factory=list)
    said: list[ToGateway] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    saved: Record | None = None
    record_refused: int = 0
    spool_full: bool = False
    at_us: int = BEGAN.monotonic_us

    def save(self, saved: Record) -> None:
        if self.record_refused:
            self.record_refused -= 1
            raise OSError(errno.ENOSPC, "no space left")
        self.saved = saved
        self.done.append("save")

    def say(self, message: ToGateway) -> None:
        self.said.append(message)
        self.done.append(f"say {type(message).__name__}")

    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str,
        *,
        urgent: bool = False,  # noqa: ARG002 - Fetcher's signature
        from_disk: bool = False,  # noqa: ARG002 - Fetcher's signature
    ) -> None:
        where = "" if environment == "system" else f" in {environment}"
        self.done.append(f"fetch {pipeline} {version} {target_digest[-1]}{where}")

    def stop(self) -> None:
        self.done.append("stop fetch")

    def put(self, report: Report) -> None:
        if self.spool_full:
            raise OSError(errno.ENOSPC, "no space left")
        self.reports.append(report)
        self.done.append("spool")

    def sent(self, number: int) -> None:
        self.done.append(f"sent {number}")

    def unheard(self, number: int) -> None:
        self.done.append(f"unheard {number}")

    def connected(self) -> None:
        self.done.append("connected")

    def gone(self) -> None:
        self.done.append("gone")

    def release_of(self, wanted: str) -> Release | None:
        return release("1") if wanted == digest("1") else None

    def collect_garbage(self, keep: Collection[str]) -> None:
        self.done.append(f"keep {len(keep)}")

    def verify(self, releases: Collection[str]) -> None:
        self.done.append(f"verify {len(releases)}")

    def now(self) -> Moment:
        self.at_us += 1000
        return Moment(at=BEGAN.at + self.at_us - BEGAN.monotonic_us, monotonic_us=self.at_us)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(loop_file, "SAVE_AGAIN_S", 0.0)
    return World()


def run(world: World, *happenings: loop_file.Happening, record: Record | None = None) -> None:
    """Everything that happens is there already; then it stops."""
    inbox = Inbox()
    for happening in happenings:
        inbox.emit(happening)
    inbox.stop()
    loop = Loop(
        inbox=inbox,
        records=world,
        data_plane=world,
        fetcher=world,
        outbox=world,
        disk=world,
        clock=world.now,
        fleet="f",
    )
    loop.run(own(), record or world.saved or step.first_record("0123456789abcdef"))


def received(document: Assignment) -> Received:
    return Received("holdfast/f/region/eu/assignment/p", signed(document))


CONNECTED = (events.GatewayConnected(), events.GatewaySaid(Status(serial=0, slots=(), gateway="g")))


def test_the_record_is_saved_before_the_fetch_starts(world: World) -> None:
    run(world, received(assignment(rule("1"), seq=1)))
    assert world.done == ["save", "save", "fetch p 1.1.0 1"]


def test_mqtt_and_http_carry_the_same_document_and_it_is_taken_once(world: World) -> None:
    envelope = signed(assignment(rule("1"), seq=1))
    run(world, Polled("region", "eu", "p", envelope), Received("holdfast/f/region/eu/assignment/p", envelope))
    assert world.done == ["save", "save", "fetch p 1.1.0 1"]


def test_a_message_on_a_topic_that_is_none_of_ours_is_passed_over(world: World) -> None:
    run(world, Received("holdfast/g/region/eu/assignment/p", b"x"), Received("elsewhere", b"x"))
    assert world.done == ["save"]


def test_a_record_that_cannot_be_saved_for_a_while_is_tried_again(world: World) -> None:
    world.record_refused = 3
    run(world, received(assignment(rule("1"), seq=1)))
    assert world.done == ["save", "save", "fetch p 1.1.0 1"]


def test_what_cannot_be_remembered_is_not_done(world: World) -> None:
    """The agent ends instead, and the next one begins at the last saved record."""
    run(world)
    before = world.saved
    world.done.clear()
    world.record_refused = 10**6
    with pytest.raises(OSError, match="no space"):
        run(world, received(assignment(rule("1"), seq=1)))
    assert world.done == []
    assert world.saved == before


def test_windows_are_acknowledged_only_after_their_report_is_on_disk(world: World) -> None:
    world.at_us += 0
    inbox_windows = events.GatewaySaid(Windows(windows=(counts("1", requests=5, window=7),)))
    slow = _passing(world, 3)
    run(world, *CONNECTED, slow, inbox_windows)
    assert world.reports[-1].windows[0].requests == 5
    assert AcknowledgeWindows(windows=(7,)) in world.said
    assert world.done.index("spool") < world.done.index("say AcknowledgeWindows")


def test_a_full_spool_loses_no_window_and_stops_nothing(world: World) -> None:
    world.spool_full = True
    inbox_windows = events.GatewaySaid(Windows(windows=(counts("1", requests=5, window=7),)))
    run(world, *CONNECTED, _passing(world, 3), inbox_windows, received(assignment(rule("1"), seq=1)))
    assert not [one for one in world.said if isinstance(one, AcknowledgeWindows)]
    assert "fetch p 1.1.0 1" in world.done


def test_an_ending_of_another_fetch_is_passed_over(world: World) -> None:
    run(world, received(assignment(rule("1"), seq=1)), FetchEnded(digest("2"), ok=True, code="", detail=""))
    assert world.saved is not None
    assert world.saved.pipeline("p").state == "fetching"


def test_a_finished_fetch_goes_on_with_the_manifest_from_the_disk(world: World) -> None:
    ended = FetchEnded(digest("1"), ok=True, code="", detail="")
    run(world, *CONNECTED, received(assignment(rule("1"), seq=1)), ended)
    assert world.saved is not None
    assert world.saved.pipeline("p").state == "self_testing"


def _passing(world: World, seconds: float) -> events.GatewaySaid:
    """A quiet status; when it is taken, so much time has passed."""
    plain = world.now

    def later() -> Moment:
        moment = plain()
        return Moment(at=moment.at + int(seconds * SECOND), monotonic_us=moment.monotonic_us + int(seconds * SECOND))

    calls = 0

    def now() -> Moment:
        nonlocal calls
        calls += 1
        return plain() if calls < 6 else later()

    world.now = now  # type: ignore[method-assign]
    return events.GatewaySaid(Status(serial=0, slots=(), gateway="g"))
