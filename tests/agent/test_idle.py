"""A device that is asked nothing hardly wakes up. What that costs in time is measured by `./scripts/bench device --only idle`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pytest

from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import digits_models, installed_release
from support.device_bench import running_device
from support.device_surroundings import PIPELINE
from support.mosquitto import running_mosquitto

# Each has a beat a second, and a report or a poll adds some. The benchmark sees what one costs, this test that there are few.
A_SECOND_MAX: Final = 4.0
WATCHED_S: Final = 5.0


@pytest.mark.slow
def test_agent_and_gateway_hardly_wake_up_while_nothing_is_asked(tmp_path: Path) -> None:
    with running_mosquitto() as broker, running_device(tmp_path, broker, health_s=60.0) as device:
        trial = Trial(soak_s=0, requests_min=0)
        published = installed_release.publish(PIPELINE, "1.0.0", digits_models.trained(), trial=trial)
        device.publish(published)
        device.assign(Rule(mode="serve", release=published.ref))
        device.serves("1.0.0")
        device.eventually(lambda: device.events("committed") or None, "it has nothing more to do")
        processes = {name: process.pid for name, process in device.processes.items()}
        assert processes.keys() == {"agent", "gateway"}

        def rests() -> bool:
            before, began = {name: woken(pid) for name, pid in processes.items()}, time.monotonic()
            time.sleep(WATCHED_S)  # the length of the measurement
            took_s = time.monotonic() - began
            return all((woken(pid) - before[name]) / took_s < A_SECOND_MAX for name, pid in processes.items())

        device.eventually(rests, "both come to rest, once they have told what they did")


def woken(pid: int) -> int:
    """How often its threads have waited for something, and went on."""
    told = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("voluntary_ctxt"))
