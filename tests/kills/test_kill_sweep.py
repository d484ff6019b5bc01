"""SIGKILL at random moments of install, switch, fallback, rollback, commit and garbage collection, of the real processes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from holdfast_agent.edge import blobs
from holdfast_shared.wire.release import blobs_of
from support import kill_sweep
from support.kill_applications import Applications
from support.kill_rig import Harmed, KillRig, running_rig

pytestmark = pytest.mark.slow
SEEDS = [0, 1, 2]  # KILLS each, side by side


@pytest.mark.timeout(1800)
def test_no_kill_of_any_process_at_any_moment_breaks_a_promise() -> None:
    """Every slot verifies, nothing goes back, nothing condemned serves, each answer is its release's own; and it converges."""
    lives = kill_sweep.sweep(SEEDS)
    killed, outcomes = kill_sweep.total(lives)
    assert killed.total() == len(SEEDS) * kill_sweep.KILLS
    assert killed.keys() == {"agent", "fetch", "worker", "gateway", "all"}
    assert outcomes["answered"] > killed.total(), "somebody asked all the while, and mostly got an answer"


def test_a_promise_that_is_broken_is_found(tmp_path: Path) -> None:
    """The sweep is sharp: other answers than the release's, a record that went back, and bytes that rotted do not pass."""
    with running_rig(7, tmp_path) as rig, Applications(rig) as asking:
        rig.begin(asking)
        version, known = next(iter(rig.expected.items()))
        rig.expected[version] = known + 1
        with pytest.raises(Harmed, match="not by it"):
            rig.go_on(asking, 100)
        rig.expected[version] = known
        asking.faults.clear()
        assert rig.seen is not None
        rig.seen = msgspec.structs.replace(rig.seen, boots=1_000_000)
        with pytest.raises(Harmed, match="boots went back"):
            rig.go_on(asking, 200)
        rig.seen = None
        current = rig.bench.saved().current
        assert current is not None
        weights = max(blobs_of_release(rig, current.release.digest), key=lambda path: path.stat().st_size)
        weights.write_bytes(bytes(weights.stat().st_size))
        with pytest.raises(Harmed, match="do not verify"):
            rig.go_on(asking, 300)


def blobs_of_release(rig: KillRig, digest: str) -> list[Path]:
    found = blobs.release_of(rig.bench.state, digest)
    assert found is not None
    models = blobs.models_of(rig.bench.state, found)
    assert models is not None
    return [rig.bench.state.blob(one) for one in blobs_of(found, tuple(models))]
