"""A device whose machine fits no variant of a release is told before anybody waits for it: in the plan, and as its prediction."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec import UNSET, UnsetType

from holdfast_server.ingest import recording
from holdfast_shared.variants import Machine
from holdfast_shared.wire.report import MachineFacts
from support.reporting import Reporter
from support.running_server import FLEET, SAMPLE, Running, membership

FITS: Final = Machine("aarch64", 2**30, frozenset({"onnx"})).facts
SMALL: Final = Machine("aarch64", 2**20, frozenset({"onnx"})).facts
BARE: Final = Machine("aarch64", 2**30, frozenset()).facts


@pytest.fixture
def fleet(server: Running) -> Running:
    """Four devices: one that fits, one too small, one without a runtime, and one whose agent does not say."""
    server.client.holdfast("publish", SAMPLE, key="mira")
    machines: list[MachineFacts | UnsetType] = [FITS, SMALL, BARE, UNSET]
    reports = []
    for number, machine in enumerate(machines):
        server.client.ask("POST", "memberships", membership(f"dev-{number}"))
        reports.append(Reporter(f"dev-{number}").report(fleet=FLEET, machine=machine))
    with server.context.database.write() as connection:
        recording.record(connection, server.context.director, reports, server.context.now().at)
    return server


def test_a_plan_names_who_could_not_run_the_release(fleet: Running) -> None:
    planned = fleet.client.holdfast("rollout", "plan", "iris", "1.0.0", "--wave", "100%")
    told = [note for note in planned["notes"] if "cannot run it" in note]
    assert len(told) == 2
    assert any(note.startswith("1 of 4 device(s)") and "bytes of memory" in note and "(dev-1)" in note for note in told)
    assert any("needs the runtime onnx; installed here: none (dev-2)" in note for note in told)


def test_the_prediction_says_what_a_device_lacks(fleet: Running) -> None:
    """On its page too; and nothing is said of one that fits, or that does not tell."""
    fleet.client.holdfast("rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--start")
    said = {}
    for number in range(4):
        (pipeline,) = (
            one for one in fleet.client.get(f"devices/dev-{number}").json["pipelines"] if one["pipeline"] == "iris"
        )
        assert pipeline["prediction"]["serve"]["version"] == "1.0.0"
        said[number] = pipeline["prediction"]["unfit"]
        page = fleet.client.get(f"/devices/dev-{number}").data.decode()
        assert ("Cannot run it" in page) is bool(said[number])
    assert (said[0], said[3]) == ("", "")
    assert said[1].endswith("needs 33554432 bytes of memory; here are 1048576")
    assert said[2].endswith("needs the runtime onnx; installed here: none")
