"""A server whose policy is that a release shadows before it serves, by real processes and the operator's own command."""

from __future__ import annotations

from typing import Final

import pytest

from demonstration.digits import PIPELINE
from demonstration.processes import Missed
from support import digits_models
from support.small_fleet import device, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OLD, NEW = "1.0.0", "1.1.0"
SHADOW: Final = (
    "--shadow",
    "--agreement",
    "0.9",
    "--rows-min",
    "40",
    "--hours-min",
    "0",
    "--soak",
    "1",
    "--deadline",
    "80",
)


def test_a_release_serves_after_it_shadowed_and_not_before() -> None:
    camera = device("camera-1")
    with small_fleet([camera], policy=("--shadow-first", "stage=production")) as fleet:
        for version in (OLD, NEW):
            fleet.publish(version, digits_models.trained())
        with fleet.application() as applications:
            fleet.roll_out(OLD)
            with pytest.raises(
                Missed, match=r"(?s)has not shadowed what serves.*no rollout had it shadow.*--shadow --start"
            ):
                fleet.start_rollout(NEW)
            words = ("rollout", "plan", PIPELINE, NEW, "--wave", "100%", *SHADOW, "--start")
            fleet.wait_for_rollout(str(fleet.operator.run("anna", *words)["id"]), "finished")
            assert fleet.answering(camera) == OLD
            fleet.roll_out(NEW)
        assert not [failure for one in applications for failure in one.failures]
