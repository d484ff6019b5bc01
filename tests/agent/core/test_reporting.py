"""What a device says: events at once, health in time, each window once, each report within its limits."""

from __future__ import annotations

import msgspec
import pytest

from holdfast_agent.core.commands import Command, Spool, Tell
from holdfast_agent.core.events import FetchEnded, GatewayConnected, GatewayGone, SpoolFailed, Tick
from holdfast_gateway.control import AcknowledgeWindows, CloseWindows, SlotStatus, Status
from holdfast_shared import strict_json
from holdfast_shared.histogram import BINS, Histogram
from holdfast_shared.wire.report import PAYLOAD_BYTES_MAX, Isolation
from support.playbook import Playbook, assignment, counts, release, rule, target


@pytest.fixture
def device() -> Playbook:
    playbook = Playbook()
    playbook.connect()
    return playbook


def spooled(commands: list[Command]) -> list[Spool]:
    return [one for one in commands if isinstance(one, Spool)]


def test_events_go_at_once_and_the_newest_report_alone_says_how_the_device_stands(device: Playbook) -> None:
    device.serve("1")
    last = device.reports[-1]
    assert last.kind == "event"
    assert last.pipelines[0].current is not None
    assert last.pipelines[0].current.release == target("1").release
    assert [(one.pipeline, one.seq) for one in last.accepted] == [("p", 1)]


def test_serving_is_what_the_gateway_confirms_not_what_the_record_wants(device: Playbook) -> None:
    device.serve("1")
    device.assigned(rule("2"))
    device.fetched("2")
    device.ready("1", "2")
    found = device.report()
    assert found.state == "trial"
    assert found.serving is not None
    assert found.candidate is not None
    assert (found.serving.release, found.candidate.release) == (target("1").release, target("2").release)
    device.ready("1", "2")
    found = device.report()
    assert found.serving is not None
    assert found.serving.release == target("2").release
    device.play(GatewayGone())
    assert device.report().serving is None, "nobody confirms anything"


def test_health_asks_for_the_windows_and_goes_without_them_when_none_come(device: Playbook) -> None:
    device.wait(3)
    assert [one.kind for one in device.reports] == ["health"]
    done = device.wait(59.2)
    assert [one.message for one in done if isinstance(one, Tell)] == [CloseWindows()]
    assert len(device.reports) == 1
    device.wait(0.6)
    assert [one.kind for one in device.reports] == ["health", "health"]


def test_without_a_gateway_health_does_not_wait(device: Playbook) -> None:
    device.play(GatewayGone())
    device.wait(2)
    assert device.reports[-1].kind == "health"


def test_windows_go_with_health_once_and_are_acknowledged_when_the_report_is_on_disk(device: Playbook) -> None:
    device.wait(2)
    (spool,) = spooled(device.windows(counts("1", requests=5, window=3), counts("1", requests=7, window=4)))
    assert [one.requests for one in spool.report.windows] == [5, 7]
    assert spool.windows == (3, 4)
    done = device.windows(counts("1", requests=5, window=3))
    assert Tell(AcknowledgeWindows(windows=(3,))) in done, "the acknowledgement was lost, or is under way"
    device.wait(61)
    assert device.reports[-1].windows == ()


def test_windows_of_a_report_that_was_not_spooled_are_reported_again_under_their_number(device: Playbook) -> None:
    device.wait(2)
    (spool,) = spooled(device.windows(counts("1", requests=5, window=3)))
    device.play(SpoolFailed(spool.report.number))
    device.windows(counts("1", requests=5, window=3))
    device.wait(61)
    assert device.reports[-1].windows == spool.report.windows


def test_window_numbers_are_never_used_for_two_windows_whatever_restarts(device: Playbook) -> None:
    seen: dict[int, int] = {}
    window = 0
    for start in range(6):
        for requests in range(100 * start + 1, 100 * start + 4):
            device.windows(counts("1", requests=requests, window=window))
            window += 1
        device.wait(61)
        for one in (one for report in device.reports for one in report.windows):
            assert seen.setdefault(one.window, one.requests) == one.requests
        if start % 2:
            device.gateway, window = f"after-{start}", 0
        else:
            device.start()
        device.connect()
    assert len(seen) == 18


def test_a_restarted_agent_reports_a_window_again_under_the_same_number(device: Playbook) -> None:
    """Killed between the report and its acknowledgement: the server counts it once."""
    device.windows(counts("1", requests=5, window=3))
    device.wait(61)
    first = device.reports[-1].windows
    device.start()
    device.connect()
    device.windows(counts("1", requests=5, window=3))
    device.wait(61)
    assert device.reports[-1].windows == first


def test_windows_before_the_gateway_said_who_it_is_are_not_taken(device: Playbook) -> None:
    device.start()
    device.play(GatewayConnected())
    assert device.device.desk.windows == {}
    device.windows(counts("1", requests=5, window=3))
    assert device.device.desk.windows == {}


def test_reports_stay_within_their_size_however_many_windows_wait(device: Playbook) -> None:
    full = Histogram(tuple((index, 2**40) for index in range(BINS)))
    windows = [msgspec.structs.replace(counts("1", requests=1, window=number), latency=full) for number in range(64)]
    device.wait(2)
    done = spooled(device.windows(*windows))
    assert len(done) > 1
    assert all(len(strict_json.encode(one.report)) <= PAYLOAD_BYTES_MAX for one in done)
    assert sorted(one.window for spool in done for one in spool.report.windows) == [
        device.device.record.windows_from + number for number in range(64)
    ]


def test_many_events_are_split_over_reports(device: Playbook) -> None:
    device.wait(10)
    before = len(device.reports)
    slots = [
        SlotStatus(pipeline=f"q{n}", target=target("1"), state="ready", losses=0, detail="x" * 900) for n in range(60)
    ]
    device.said(Status(serial=0, slots=tuple(slots), gateway=device.gateway))
    lost = tuple(msgspec.structs.replace(one, losses=1) for one in slots)
    device.said(Status(serial=0, slots=lost, gateway=device.gateway))
    found = device.reports[before:]
    assert sum(len(one.events) for one in found) == 60
    assert all(len(strict_json.encode(one)) <= PAYLOAD_BYTES_MAX for one in found)


def test_how_workers_are_confined_is_what_the_gateway_last_told(device: Playbook) -> None:
    """Also while it is away, and by a gateway of an older version: nothing is claimed and nothing forgotten."""
    told = Isolation(applied={"network": "seccomp"}, degraded={"user": "none named"})
    device.said(Status(serial=0, slots=(), gateway=device.gateway, isolation=told))
    device.said(Status(serial=0, slots=(), gateway=device.gateway))
    device.wait(61)
    assert device.reports[-1].isolation == told


def test_the_fingerprint_is_what_a_worker_measured(device: Playbook) -> None:
    device.said(Status(serial=0, slots=(), gateway=device.gateway, runtime={"onnxruntime": "1.20"}))
    device.wait(61)
    assert device.reports[-1].fingerprint == {"onnxruntime": "1.20"}


def test_a_late_tick_does_not_send_missed_health_in_a_burst(device: Playbook) -> None:
    device._to(device.now.monotonic_us + 3600 * 1_000_000)
    device.play(Tick())
    device.wait(2)
    assert sum(one.kind == "health" for one in device.reports) == 1


def test_a_slow_pipeline_does_not_keep_another_from_being_confirmed(device: Playbook) -> None:
    """The serial waits for all; the first good answer speaks for its own."""
    device.serve("1")
    device.serve("2")
    device.document(assignment(rule("3"), seq=1, pipeline="q"))
    device.play(FetchEnded(pipeline="q", target=target("3"), ok=True, draw=0.5, release=release("3")))
    old = device.device.gateway.serial
    device.assigned(rule("1"))
    device.fetched("1")
    device.status({"1": "ready", "2": "ready"}, serial=old)
    found = device.report().serving
    assert found is not None
    assert found.release == target("2").release
    device.switched("1")
    device.status({"1": "ready", "2": "ready"}, serial=old)
    found = device.report().serving
    assert found is not None
    assert found.release == target("1").release
