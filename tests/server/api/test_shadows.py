"""What devices say of a release that shadows, to who asks: by the command, over the API, on the pages."""

from __future__ import annotations

import msgspec
import pytest

from holdfast_server.ingest import recording
from holdfast_shared.histogram import Histogram, bin_of
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.report import PipelineReport, ShadowCounts, SlotReport
from support.reporting import Reporter
from support.running_server import FLEET, SAMPLE, Running, membership

PART = ShadowCounts(
    requests=100,
    dropped=4,
    nulls=1,
    compared=99,
    agreed=96,
    latency=Histogram(((bin_of(5.0), 100),)),
    serving_latency=Histogram(((bin_of(2.0), 100),)),
)


@pytest.fixture
def fleet(server: Running) -> Running:
    """One device, on which the sample shadows."""
    server.client.holdfast("publish", SAMPLE, key="mira")
    server.client.ask("POST", "memberships", membership("dev-0"))
    found = server.client.get("releases/iris/1.0.0").json
    ref = ReleaseRef(version=found["version"], digest=found["digest"])
    reporter = Reporter("dev-0")
    window = msgspec.structs.replace(reporter.window(1), pipeline="iris", release=ref, requests=0, shadow=PART)
    shadow = SlotReport(release=ref, environment="system", ready=True)
    pipeline = PipelineReport(pipeline="iris", state="shadowing", candidate=shadow)
    serving = msgspec.structs.replace(reporter.window(100), pipeline="iris")
    report = reporter.report(fleet=FLEET, windows=(window, serving), pipelines=(pipeline,))
    with server.context.database.write() as connection:
        recording.record(connection, server.context.director, [report], server.context.now().at)
    return server


def test_the_release_says_how_it_did_where_it_shadowed(fleet: Running) -> None:
    found = fleet.client.holdfast("release", "shadow", "iris", "1.0.0")
    assert (found["devices"], found["requests"], found["dropped"], found["nulls"]) == (1, 100, 4, 1)
    assert found["agreement"] == 96 / 99
    assert found["latency_ms"]["p99"] == pytest.approx(5.0, rel=0.011)
    assert found["serving_latency_ms"]["p50"] == pytest.approx(2.0, rel=0.011)
    assert fleet.client.get("releases/iris/9.9.9/shadow").status == 404


def test_the_device_says_how_what_shadows_there_agrees_and_so_does_its_page(fleet: Running) -> None:
    (pipeline,) = fleet.client.get("devices/dev-0").json["pipelines"]
    assert (pipeline["state"], pipeline["shadow"]["compared"]) == ("shadowing", 99)
    assert "agrees on 96.97 % of 99 rows" in fleet.client.get("/devices/dev-0").data.decode()


def test_a_rollout_that_shadows_says_so_and_what_it_asks(fleet: Running) -> None:
    planned = fleet.client.holdfast(
        "rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--shadow", "--agreement", "0.95", "--rows-min", "50"
    )
    assert planned["shadow"] == {"agreement_min": 0.95, "rows_min": 50, "hours_min": 72}
    assert planned["deadline_s"] > 72 * 3600
    assert planned["gates"] == []
