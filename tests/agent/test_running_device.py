"""The shipped agent with the shipped gateway, worker and fetch, over a real broker: what a fleet relies on, one device of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_shared.wire.assignment import Condemned, ReleaseRef, Rule
from holdfast_shared.wire.release import Guardrail, Trial
from holdfast_worker import installed as installed_here
from support import digits_models, installed_release
from support.descriptors import opened_by
from support.device_bench import DeviceBench, Traffic, running_device
from support.device_surroundings import PIPELINE
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow
GUARDRAILS = (
    Guardrail(metric="null_rate", threshold=0.01, action="fall_back", requests_min=10, window_s=10),
    Guardrail(metric="error_rate", threshold=0.01, action="fall_back", requests_min=10, window_s=10),
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker) as running:
        yield running


def release(version: str, model: bytes | None = None) -> Published:
    return installed_release.publish(
        PIPELINE,
        version,
        model or digits_models.trained(),
        guardrails=GUARDRAILS,
        trial=Trial(soak_s=1, requests_min=5),
    )


def serve(published: Published) -> Rule:
    return Rule(mode="serve", release=published.ref)


def bad(ref: ReleaseRef) -> Condemned:
    return Condemned(release=ref, incident="i-1")


def installed(device: DeviceBench, published: Published) -> None:
    device.publish(published)
    device.assign(serve(published))
    device.serves(published.ref.version)


def test_from_a_document_to_an_answer_and_back(device: DeviceBench) -> None:
    """First install, update under traffic, rollback by one document: no request fails, and reports are signed."""
    one, two = release("1.0.0"), release("1.1.0", digits_models.trained(0.2))
    installed(device, one)
    assert device.ask() == (200, "1.0.0")
    with Traffic(device) as traffic:
        installed(device, two)
        device.eventually(lambda: device.events("committed")[1:] or None, "1.1.0 is committed")
        device.assign(serve(two), serve(one), condemned=(bad(two.ref),))
        device.serves("1.0.0")
        (told,) = device.eventually(lambda: device.events("rolled_back") or None, "the rollback is told")
    assert traffic.failed == []
    assert {version for _, version in traffic.answers} == {"1.0.0", "1.1.0"}
    assert told.release == two.ref
    assert told.began_monotonic_us is not None
    assert 0 <= told.at_monotonic_us - told.began_monotonic_us < 1_000_000
    assert [one.cause for one in device.saved().activations] == ["trial", "trial", "rollback"]


def test_a_release_that_goes_bad_on_live_traffic_is_left_by_the_device_itself(device: DeviceBench) -> None:
    """Not a number on some images: the same requests are answered by the other slot, and the device falls back."""
    one, bad_one = release("1.0.0"), release("1.2.0", digits_models.nan_on_some())
    installed(device, one)
    with Traffic(device) as traffic:
        device.publish(bad_one)
        device.assign(serve(bad_one), serve(one))
        (told,) = device.eventually(lambda: device.events("fell_back") or None, "the fallback is told")
        device.serves("1.0.0")
    assert traffic.failed == []
    assert told.code == "guardrail-null-rate"
    assert told.began_monotonic_us is not None
    assert told.at_monotonic_us >= told.began_monotonic_us
    assert [one.code for one in device.saved().condemned_here] == ["guardrail-null-rate"]


def test_a_release_that_fails_its_self_test_never_serves(device: DeviceBench) -> None:
    one = release("1.0.0")
    other = installed_release.publish(
        PIPELINE, "1.3.0", digits_models.trained(), golden=installed_release.golden_cases(digits_models.trained(5.0))
    )
    installed(device, one)
    device.publish(other)
    device.assign(serve(other), serve(one))
    (told,) = device.eventually(lambda: device.events("self_test_failed") or None, "the failed self-test is told")
    assert (told.release, told.code) == (other.ref, "self-test-failed")
    assert device.ask() == (200, "1.0.0")


def test_a_killed_agent_costs_no_request_and_carries_on(device: DeviceBench) -> None:
    """SIGKILL in the middle of an update: the gateway serves on; the restarted agent finishes the update."""
    one, two = release("1.0.0"), release("1.1.0", digits_models.trained(0.2))
    installed(device, one)
    with Traffic(device) as traffic:
        device.publish(two)
        device.assign(serve(two))
        device.eventually(lambda: device.saved().candidate, "the update is under way")
        device.kill("agent")
        device.start_agent()
        device.serves("1.1.0")
        device.eventually(lambda: device.events("committed")[1:] or None, "1.1.0 is committed")
        device.kill("agent")
        device.start_agent()
        device.eventually(lambda: device.events("restarted")[2:] or None, "a third start is told")
    assert traffic.failed == []
    numbers = [(report.incarnation, report.number) for report in device.reports]
    assert len(set(numbers)) == len({report.number for report in device.reports})
    assert {report.machine for report in device.reports} == {installed_here.machine().facts}


def test_windows_add_up_to_what_was_asked_whatever_was_killed(device: DeviceBench) -> None:
    """Every request is counted once, over a killed agent and a broker that was away."""
    one = release("1.0.0")
    installed(device, one)
    for _ in range(50):
        assert device.ask()[0] == 200
    device.kill("agent")
    for _ in range(30):
        assert device.ask()[0] == 200
    device.start_agent()
    for _ in range(20):
        assert device.ask()[0] == 200

    def counted() -> bool:
        windows = {window.window: window for report in device.reports for window in report.windows}
        return sum(window.requests for window in windows.values()) == 100

    device.eventually(counted, "100 requests in windows, each counted once")


def test_reports_wait_while_the_broker_is_away(device: DeviceBench) -> None:
    installed(device, release("1.0.0"))
    device.lose_broker()
    for _ in range(25):
        assert device.ask()[0] == 200
    device.find_broker()

    def counted() -> bool:
        windows = {window.window: window for report in device.reports for window in report.windows}
        return sum(window.requests for window in windows.values()) == 25

    device.eventually(counted, "what was counted while the broker was away")


def test_a_gateway_that_was_killed_serves_again_by_the_record_without_the_agent(device: DeviceBench) -> None:
    installed(device, release("1.0.0"))
    device.eventually(lambda: device.events("committed") or None, "committed")
    device.kill("agent")
    device.kill("gateway")
    device.state.gateway_addresses.unlink()
    device.start_gateway()
    device.eventually(lambda: device.state.gateway_addresses.exists() or None, "the gateway listens")
    device.eventually(lambda: device.ask() == (200, "1.0.0") or None, "it answers")


def test_sigterm_stops_it_cleanly_and_a_second_agent_is_refused(device: DeviceBench) -> None:
    installed(device, release("1.0.0"))
    second = subprocess.run(
        [sys.executable, "-m", "holdfast_agent", "run", "--config", device.path],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 2
    assert "another agent runs" in second.stderr
    assert device.terminate("agent") == 0
    assert device.ask() == (200, "1.0.0")


def test_a_lock_that_a_killed_agent_left_to_a_child_is_waited_for(tmp_path: Path) -> None:
    with running_mosquitto() as broker, contextlib.closing(DeviceBench(tmp_path, broker)) as device:
        device.state.root.mkdir(parents=True)
        left = os.open(device.state.root, os.O_RDONLY)
        fcntl.flock(left, fcntl.LOCK_EX)
        agent = device.start_agent()
        device.eventually(lambda: device.state.root in opened_by(agent.pid), "it wants the folder")
        os.close(left)
        device.eventually(lambda: device.reports or None, "it runs")
