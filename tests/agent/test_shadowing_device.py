"""The shipped agent, fetch, gateway and workers: a rule's release shadows what serves, whoever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.commands import gateway_says
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from holdfast_shared.wire.report import ShadowCounts
from support import digits_models, installed_release
from support.device_bench import DeviceBench, running_device
from support.device_surroundings import PIPELINE
from support.installed_release import Published
from support.mosquitto import running_mosquitto

pytestmark = pytest.mark.slow


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceBench]:
    with running_mosquitto() as broker, running_device(tmp_path, broker) as running:
        yield running


def release(version: str, strength: float) -> Published:
    trial = Trial(soak_s=1, requests_min=0)
    return installed_release.publish(PIPELINE, version, digits_models.trained(strength), trial=trial)


def told(device: DeviceBench, published: Published) -> ShadowCounts:
    """All windows of it, each once."""
    windows = {one.window: one for report in device.reports for one in report.windows if one.release == published.ref}
    parts = [one.shadow for one in windows.values() if one.shadow is not None]
    names = ("requests", "dropped", "compared", "agreed", "errors")
    return ShadowCounts(**{name: sum(getattr(part, name) for part in parts) for name in names})


def ask(device: DeviceBench, times: int) -> None:
    for image in range(times):
        assert device.ask(image) == (200, "1.0.0")


def test_a_release_shadows_what_serves_over_a_killed_agent_and_a_killed_gateway(device: DeviceBench) -> None:
    one, two = release("1.0.0", 0.05), release("1.1.0", 0.2)
    for published in (one, two):
        device.publish(published)
    device.assign(Rule(mode="serve", release=one.ref))
    device.serves("1.0.0")
    device.assign(Rule(mode="shadow", release=two.ref), Rule(mode="serve", release=one.ref))
    device.eventually(lambda: device.saved().state == "shadowing" or None, "1.1.0 shadows")
    ask(device, 40)

    def accounted(asked: int) -> bool | None:
        found = told(device, two)
        return found.requests + found.dropped == asked or None

    device.eventually(lambda: accounted(40), "40 requests are accounted for")
    assert told(device, two).agreed > 0
    device.kill("agent")
    ask(device, 20)
    device.start_agent()
    device.eventually(lambda: accounted(60), "and 20 more, asked while there was no agent")
    device.kill("gateway")
    device.state.gateway_addresses.unlink()
    device.start_gateway()
    device.eventually(lambda: device.state.gateway_addresses.exists() or None, "the gateway listens")
    device.eventually(lambda: device.ask() == (200, "1.0.0") or None, "it answers")

    def shadows() -> str | None:
        found = gateway_says.now(device.state).shadows
        return gateway_says.shadow_line(found[0]) if found and found[0].state == "ready" else None

    said = device.eventually(shadows, "the shadow is back, by the record")
    assert "digits: shadowed by 1.1.0 (ready)" in said
    before = told(device, two).requests
    ask(device, 10)
    device.eventually(lambda: told(device, two).requests > before or None, "it is asked again")
    device.assign(Rule(mode="serve", release=one.ref))
    device.eventually(lambda: device.saved().state == "idle" or None, "its rule is gone")
    assert [one.cause for one in device.saved().activations] == ["trial"]
    assert (device.saved().candidate, device.saved().condemned_here) == (None, ())
