"""Bits flip on the disk of a shipped device under traffic: found, reported, fetched again; no request notices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from holdfast_agent.core.record import State
from holdfast_shared.wire.assignment import Requests, Rule
from holdfast_shared.wire.release import Trial
from holdfast_shared.wire.report import Event
from support import digits_models, installed_release
from support.device_bench import DeviceBench, Traffic, running_device
from support.device_surroundings import PIPELINE
from support.hostile_server import status
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker, verify_s=0.5) as running:
        yield running


def release(version: str, model: bytes) -> Published:
    return installed_release.publish(PIPELINE, version, model, trial=Trial(soak_s=1, requests_min=0))


def flipped(path: Path) -> bytes:
    """What was there; one bit in the middle is another one now."""
    raw = path.read_bytes()
    middle = len(raw) // 2
    with path.open("r+b") as stream:
        stream.seek(middle)
        stream.write(bytes([raw[middle] ^ 1]))
    return raw


def degraded(device: DeviceBench) -> bool:
    newest = max(device.reports, key=lambda one: one.number)
    return newest.pipelines[0].degraded


def events_after(device: DeviceBench, known: int) -> list[Event] | None:
    """Events `degraded` past the first `known`, once there are any."""
    return device.events("degraded")[known:] or None


def holds(path: Path, raw: bytes) -> bool | None:
    return path.read_bytes() == raw or None


def is_in(device: DeviceBench, state: State) -> bool | None:
    return device.saved().state is state or None


def rots_and_is_mended(device: DeviceBench, published: Published) -> None:
    weights = published.models[0].variants[0].files[0].digest
    device.files.on(f"/api/v1/blobs/{weights}", status(503))
    path = device.state.blob(weights)
    raw, known = flipped(path), len(device.events("degraded"))
    told = device.eventually(partial(events_after, device, known), "the damage is told")
    assert (told[0].code, told[0].release) == ("damaged-blob", published.ref)
    device.eventually(lambda: degraded(device) or None, "a report that says degraded")
    assert path.read_bytes() != raw
    device.publish(published)
    device.eventually(partial(holds, path, raw), "its bytes are whole again")
    device.eventually(lambda: not degraded(device) or None, "a report that is not degraded")


def test_bits_that_flip_on_the_disk_are_found_and_mended_while_the_release_serves_on(device: DeviceBench) -> None:
    """Both slots, one after the other. While the server has nothing to mend it with, the device says `degraded`, and serves."""
    one, two = release("1.0.0", digits_models.trained()), release("1.1.0", digits_models.trained(0.2))
    for published in (one, two):
        device.publish(published)
        device.assign(Rule(mode="serve", release=published.ref))
        device.serves(published.ref.version)
        device.eventually(lambda: device.saved().candidate is None or None, "it is committed")
    with Traffic(device) as traffic:
        for published in (two, one):
            rots_and_is_mended(device, published)
    assert traffic.failed == []
    assert {version for _, version in traffic.answers} == {"1.1.0"}, "what served went on serving"
    assert device.events("worker_lost") == []
    assert device.saved().condemned_here == ()
    assert [entry.cause for entry in device.saved().activations] == ["trial", "trial"]


def test_bits_that_flip_during_a_trial_of_a_share_are_mended_while_it_lasts(device: DeviceBench) -> None:
    """What answers most requests, and what is on trial: neither stops answering, and the trial goes on."""
    one, two = release("1.0.0", digits_models.trained()), release("1.1.0", digits_models.trained(0.2))
    fifth = Requests(share=2_000)
    for published, requests in ((one, None), (two, fifth)):
        device.publish(published)
        rules = (Rule(mode="serve", release=published.ref, requests=requests), Rule(mode="serve", release=one.ref))
        device.assign(*rules)
        device.serves(published.ref.version)
        state = State.IDLE if requests is None else State.TRIAL
        device.eventually(partial(is_in, device, state), f"it is {state}")
    with Traffic(device) as traffic:
        for published in (one, two):
            rots_and_is_mended(device, published)
            assert (device.saved().state, device.saved().requests) == (State.TRIAL, fifth)
    assert traffic.failed == []
    assert {version for _, version in traffic.answers} == {"1.0.0", "1.1.0"}
    assert device.events("worker_lost") == []
    assert device.saved().condemned_here == ()
    assert [entry.cause for entry in device.saved().activations] == ["trial", "trial"]
