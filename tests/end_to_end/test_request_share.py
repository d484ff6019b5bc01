"""A release that gets a share of the requests, by real processes: from the operator's command to who answers which session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest

from demonstration.digits import PIPELINE
from holdfast_agent.core.record import State
from holdfast_shared import cohort
from holdfast_shared.wire.assignment import Requests
from support import digits_models
from support.installed_release import tensor
from support.small_fleet import WATCHED, SmallFleet, device, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CAMERA: Final = device("camera-1")
OLD, NEW = "1.0.0", "1.1.0"
SESSIONS: Final = [f"user-{number}" for number in range(40)]
HALF: Final = 5_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    with small_fleet([CAMERA]) as started:
        started.publish(OLD, digits_models.trained())
        started.publish(NEW, digits_models.trained())
        with started.application():
            started.roll_out(OLD)
        yield started


def plan(fleet: SmallFleet, *words: str) -> str:
    return str(fleet.operator.run("anna", "rollout", "plan", PIPELINE, NEW, *words, "--start")["id"])


def ask(fleet: SmallFleet, **parameters: str) -> str:
    """The version that answers one request of that session, or why none does."""
    image = np.asarray(digits_models.inked_images()[0]).reshape(1, -1)
    body: Any = {"parameters": parameters, "inputs": [tensor("image", image)]}
    answer = fleet.request(CAMERA, "POST", f"/v2/models/{PIPELINE}/infer", json.dumps(body).encode())
    return str(answer.body["model_version"] if answer.status == 200 else answer)


def versions(fleet: SmallFleet) -> set[str]:
    """What answers the segment's sessions now."""
    return {ask(fleet, session=one, tier="beta") for one in SESSIONS}


def check_sessions(fleet: SmallFleet, digest: str) -> None:
    """Each session of the segment is answered by the release that its bucket says, and who is not in it by the older."""
    for session in SESSIONS:
        expected = NEW if cohort.bucket(digest, session) < HALF else OLD
        assert ask(fleet, session=session, tier="beta") == expected
        assert ask(fleet, session=session) == OLD


def test_a_users_segment_meets_the_release_over_restarts_and_an_abort_ends_it(fleet: SmallFleet) -> None:
    """Soaked for an hour, the rollout stays at its first share: nothing is committed, and every session keeps its release."""
    words = ("--request-shares", "50%,100%", "--request-segment", "tier=beta", "--soak", "3600", "--requests-min", "40")
    rollout = plan(fleet, *words)
    fleet.seen("both answer", lambda: versions(fleet) == {OLD, NEW})
    slots = fleet.slots(CAMERA)
    assert (slots.state, slots.requests and slots.requests.share) == (State.TRIAL, HALF)
    assert slots.candidate is not None
    digest = slots.candidate.release.digest
    check_sessions(fleet, digest)

    fleet.seen(
        "the server is told",
        lambda: (
            (fleet.server.get("devices", CAMERA.id)["pipelines"][0]["requests"] or {}).get("in_words")
            == "50 % of requests with tier=beta"
        ),
    )
    shown = fleet.operator.run("anna", "rollout", "status", rollout)
    assert [wave["requests"] and wave["requests"]["share"] for wave in shown["waves"]] == [HALF, 10_000, None]

    fleet.processes.stop(f"agent-{CAMERA.id}")
    fleet.processes.stop(f"gateway-{CAMERA.id}")
    fleet.start_gateway(CAMERA)  # alone: the record says which requests are whose
    fleet.seen("both answer again", lambda: versions(fleet) == {OLD, NEW})
    check_sessions(fleet, digest)
    fleet.start_agent(CAMERA)
    fleet.wait_for_report(CAMERA)
    check_sessions(fleet, digest)

    fleet.operator.run("anna", "rollout", "abort", rollout)
    fleet.wait_until_serving(CAMERA, OLD)
    fleet.seen("the older answers all", lambda: versions(fleet) == {OLD})
    assert fleet.slots(CAMERA).requests is None


def test_a_rollout_walks_through_its_shares_to_a_release_that_is_committed(fleet: SmallFleet) -> None:
    """Each wave on requests of its own share; no request fails on the way."""
    with fleet.application() as applications:
        rollout = plan(fleet, "--request-shares", "50%,100%", *WATCHED)
        seen: list[Requests | None] = []

        def in_force() -> bool:
            seen.append(fleet.slots(CAMERA).requests)
            return seen[-1] is not None

        fleet.seen("a share is in force", in_force)
        found = fleet.wait_for_rollout(rollout, "finished")
        fleet.wait_until_serving(CAMERA, NEW)
    assert seen[-1] == Requests(share=HALF)
    assert [(wave["state"], wave["verdict"]) for wave in found["waves"]] == [("passed", "pass")] * 2
    (application,) = applications
    assert application.failures == []
    assert application.versions.keys() == {OLD, NEW}
    newest = fleet.server.get("devices", CAMERA.id)["pipelines"][0]
    assert (newest["serving"]["version"], newest["requests"]) == (NEW, None)
