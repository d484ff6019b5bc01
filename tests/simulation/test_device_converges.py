"""Any interleaving, repetition and loss of documents, restarts between any two commands, boots, failing fetches, bit rot and bad
releases: the device serves a verified release all the while, activates nothing condemned, and ends where `assign` wants it.
"""

from __future__ import annotations

import os

import msgspec
import pytest

from holdfast_shared.wire.assignment import Requests
from support.device_world import World
from support.playbook import assignment, rule, target

SEEDS = int(os.environ.get("HOLDFAST_SIMULATION_SEEDS", "120"))
TURNS = 500
STARTS = 100
SHARES = SEEDS // 10
SHARE = Requests(share=500)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_device_in_a_failing_world(seed: int) -> None:
    """The invariants are asserted by the world after every write and every switch."""
    world = World(seed)
    for _ in range(TURNS):
        world.turn()
    world.calm_down()
    assert world.settled, (world.conducts, world.documents[-1], world.saved_pipeline, world.device)


def test_the_world_fails_in_every_way_and_devices_get_far() -> None:
    """A simulator in which nothing happens proves nothing: over some seeds, every kind of thing was seen."""
    seen: set[str] = set()
    for seed in range(60):
        world = World(seed)
        for _ in range(TURNS):
            world.turn()
            assert world.device is not None
            pipeline = world.device.record.pipeline("p")
            seen.add(pipeline.state.value)
            seen |= {one.cause for one in pipeline.activations} | {one.code for one in pipeline.condemned_here}
            seen |= {"previous"} if pipeline.previous is not None else set()
            seen |= {"restarted"} if world.saved.boots > 3 else set()
            seen |= {"a share"} if pipeline.requests is not None else set()
            seen |= {"spread"} if world.device.live_of("p").begins_us is not None else set()
            seen |= {"damaged"} if world.saved.damaged else set()
            seen |= {"mended"} if pipeline.repairs else set()
            seen |= {"unreadable"} if world.device.verification.unreadable else set()
    wanted = {"idle", "fetching", "self_testing", "trial", "shadowing", "falling_back", "previous", "restarted"}
    wanted |= {"damaged", "mended", "unreadable", "boot-loop", "a share", "spread"}
    wanted |= {"fallback", "rollback", "superseded", "guardrail-null-rate", "crash-loop", "self-test-failed"}
    assert wanted <= seen


def test_a_share_that_lasts_in_a_failing_world() -> None:
    """Nobody changes the decision: in weeks of restarts and rot the trial goes on, and slots are mended beside it."""
    mended = lasted = 0
    for seed in range(SHARES):
        world = World(seed)
        world.conducts = dict.fromkeys(world.conducts, "good")
        world.decided = world.calm = True
        for seq, rules in enumerate(([rule("1")], [msgspec.structs.replace(rule("2"), requests=SHARE), rule("1")]), 1):
            world.documents.append(assignment(*rules, seq=seq))
            world.calm_down()
            assert world.settled
        world.calm = False
        for _ in range(TURNS):
            world.turn()
            assert world.device is not None
            mended += world.device.record.pipeline("p").requests is not None and world.device.fetch is not None
        world.calm_down()
        assert world.settled, (world.saved_pipeline, world.saved.damaged, world.rotten, world.device)
        lasted += world.saved_pipeline.requests == SHARE
        assert {one.code for one in world.saved_pipeline.condemned_here} <= {"boot-loop"}, "and nothing else ends it"
    assert mended > SHARES
    assert lasted > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_release_that_takes_the_machine_down_with_it_costs_one_fallback(seed: int) -> None:
    """A boot loop: the machine starts anew whenever 2 serves. It settles with 1 and never goes back, in a hundred starts."""
    world = World(seed)
    world.conducts = dict.fromkeys(world.conducts, "good")
    world.calm = True
    world.documents.append(assignment(rule("1"), seq=1))
    world.calm_down()
    assert world.settled
    world.documents.append(assignment(rule("2"), rule("1"), seq=2))
    world.deliver_newest()
    served = [world.saved_pipeline.serving]
    while world.boots < STARTS:
        for _ in range(8):
            world.calm_turn()
            if world.settled or (world.gateway is not None and world.gateway.serving == target("2")):
                break
        world.boot()
        served.append(world.saved_pipeline.serving)
    world.calm_down()
    assert world.settled
    changes = [one for one, before in zip(served[1:], served, strict=False) if one != before]
    assert changes == [target("2"), target("1")]
    assert [one.code for one in world.saved_pipeline.condemned_here] == ["boot-loop"]
