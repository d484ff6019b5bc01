"""Switching between two warm slots, and rolling back on the device, while applications ask."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmark import questions
from benchmark.clients import Asking
from benchmark.footprint import pss_mb
from benchmark.requests import OURS
from benchmark.rig import two_slots
from benchmark.table import Row
from holdfast_agent.edge import local_control
from holdfast_agent.edge.local_control import Rollback
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import digits_models, installed_release
from support.device_bench import DeviceBench, running_device
from support.device_surroundings import PIPELINE
from support.gateway_bench import eventually
from support.mosquitto import running_mosquitto

CONNECTIONS: Final = 8
P99_9_OVER_CONTROL_MS: Final = 5.0
WARM_ROLLBACK_MS: Final = 5.0
# Between two switches, so that each falls among requests, and not onto the one before.
PAUSE_S: Final = 0.01

Told = Callable[[str], None]


def warm(folder: Path, switches: int, told: Told) -> Iterator[Row]:
    """So many switches under 8 connections, between two stretches of the same length without any."""
    message = questions.binary(OURS, "image", digits_models.images()[:1], "probabilities")
    with two_slots(folder, digits_models.trained(), digits_models.trained(0.2)) as slots:
        length_s = switches * PAUSE_S
        told(f"control: {length_s:.0f} s of traffic without a switch")
        with Asking(slots.address, message, CONNECTIONS) as before:
            time.sleep(length_s)  # the length of the measurement, not a wait for something
        memory_before = pss_mb(slots.pid)
        told(f"{switches} warm switches under {CONNECTIONS} connections")
        with Asking(slots.address, message, CONNECTIONS) as during:
            for number in range(switches):
                slots.switch()
                time.sleep(PAUSE_S)  # as above
                if number % 200 == 199:
                    told(f"{number + 1} of {switches} switches, {len(during.answers)} answers")
        memory_after = pss_mb(slots.pid)
        with Asking(slots.address, message, CONNECTIONS) as after:
            time.sleep(length_s)  # as above
    control = _p99_9([*before.answers, *after.answers])
    switched = _p99_9(during.answers)
    yield Row(
        what=f"{switches} warm switches under {CONNECTIONS} connections, requests that failed",
        ours=f"{len(during.faults)} of {len(during.answers):,}",
        peer="limit: 0",
        ratio=float(len(during.faults)),
        target=0.0,
    )
    yield Row(
        what="the same, p99.9 of a request",
        ours=f"{switched:.1f} ms, {switched - control:+.1f} over the control",
        peer=f"without switches: {control:.1f} ms; limit: {P99_9_OVER_CONTROL_MS:g} ms over it",
        ratio=max(0.0, switched - control) / P99_9_OVER_CONTROL_MS,
        target=1.0,
    )
    yield Row(
        what="the same, the gateway's memory",
        ours=f"{memory_after:.1f} MB PSS after",
        peer=f"{memory_before:.1f} MB before",
        ratio=memory_after / memory_before,
        target=1.05,
    )


def rollback(folder: Path, times: int, told: Told) -> Iterator[Row]:
    """`holdfast-agent rollback` as its agent is asked it, to the first answer of the release before, record included."""
    found: list[float] = []
    message = questions.binary(OURS, "image", digits_models.images()[:1], "probabilities")
    with running_mosquitto() as broker, running_device(folder, broker) as device:
        _install(device, "1.0.0")
        for number in range(1, times + 1):
            version = f"1.{number}.0"
            bad = _install(device, version)
            found.append(_rolled_back(device, message, bad))
            if number % 10 == 0:
                told(f"{number} of {times} rollbacks, median {statistics.median(found):.1f} ms")
    p99 = float(np.quantile(found, 0.99))
    yield Row(
        what="rollback on the device, warm: asked to first good answer, record included, p99",
        ours=f"{p99:.1f} ms (p50 {statistics.median(found):.1f}; {times} rollbacks)",
        peer=f"limit: {WARM_ROLLBACK_MS:g} ms",
        ratio=p99 / WARM_ROLLBACK_MS,
        target=1.0,
    )


def _install(device: DeviceBench, version: str) -> Target:
    """Committed, and both slots loaded."""
    published = installed_release.publish(
        PIPELINE, version, digits_models.trained(), trial=Trial(soak_s=0, requests_min=0)
    )
    device.publish(published)
    device.assign(Rule(mode="serve", release=published.ref))

    def settled() -> bool:
        saved = device.saved()
        return saved.current is not None and saved.current.release == published.ref

    device.eventually(settled, f"{version} is committed")
    device.eventually(lambda: device.ask()[1] == version or None, f"{version} answers")
    return Target(release=published.ref)


def _rolled_back(device: DeviceBench, message: bytes, bad: Target) -> float:
    """Milliseconds."""
    host, _, port = device.address.removeprefix("http://").rpartition(":")
    with Asking((host, int(port)), message, 1) as asking:
        eventually(lambda: asking.answers, "an answer")
        begun = time.monotonic()
        answer = local_control.ask(device.state.agent_socket, Rollback(pipeline=PIPELINE, target=bad, reason="bench"))
        assert not answer.refused, answer.refused
        eventually(lambda: asking.answers[-1][2] == answer.serves, f"{answer.serves} answers")
    assert not asking.faults, asking.faults
    first = next(done for _, done, version in asking.answers if version == answer.serves and done >= begun)
    return (first - begun) * 1000


def _p99_9(answers: list[tuple[float, float, str]]) -> float:
    return float(np.quantile([(done - begun) * 1000 for begun, done, _ in answers], 0.999))
