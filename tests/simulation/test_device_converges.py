"""Any interleaving, repetition and loss of documents, restarts between any two commands, failing fetches and bad releases:
the device serves a verified release all the while, activates nothing condemned, and ends where `assign` wants it.
"""

from __future__ import annotations

import pytest

from support.device_world import World

SEEDS = 150
TURNS = 600


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
    for seed in range(100):
        world = World(seed)
        for _ in range(TURNS):
            world.turn()
            assert world.device is not None
            pipeline = world.device.record.pipeline("p")
            seen.add(pipeline.state.value)
            seen |= {one.cause for one in pipeline.activations} | {one.code for one in pipeline.condemned_here}
            seen |= {"previous"} if pipeline.previous is not None else set()
            seen |= {"restarted"} if world.saved.boots > 3 else set()
    wanted = {"idle", "fetching", "self_testing", "trial", "falling_back", "previous", "restarted"}
    wanted |= {"fallback", "rollback", "superseded", "guardrail-null-rate", "crash-loop", "self-test-failed"}
    assert wanted <= seen
