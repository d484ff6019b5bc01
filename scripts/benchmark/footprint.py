"""What agent and gateway cost a small device: memory of their own, and CPU while nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil

from benchmark.table import Row
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import digits_models, installed_release
from support.device_bench import running_device
from support.device_surroundings import PIPELINE
from support.mosquitto import running_mosquitto

PSS_MB: Final = 60.0
IDLE_CPU_MS_A_MINUTE: Final = 50.0
_MB: Final = 1024**2

Told = Callable[[str], None]


def pss_mb(*processes: int) -> float:
    """Proportional set size of the processes together: pages that several share count in parts."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in processes) / _MB


def anonymous_mb(process: int) -> float:
    """What is no file's: heap, stacks, and pages of libraries that were written to."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(one.split()[1]) for one in lines if one.startswith("Anonymous:")) / 1024


def idle(folder: Path, seconds: int, told: Told) -> Iterator[Row]:
    """Agent and gateway of one device that serves one release, asked nothing."""
    with running_mosquitto() as broker, running_device(folder, broker, health_s=60.0) as device:
        published = installed_release.publish(
            PIPELINE, "1.0.0", digits_models.trained(), trial=Trial(soak_s=0, requests_min=0)
        )
        device.publish(published)
        device.assign(Rule(mode="serve", release=published.ref))
        device.serves("1.0.0")
        ours = [psutil.Process(device.processes[name].pid) for name in ("agent", "gateway")]
        told(f"{seconds} s of idling")
        before = [_cpu_ms(one) for one in ours]
        time.sleep(seconds)  # the length of the measurement
        spent = [(_cpu_ms(one) - start) * 60 / seconds for one, start in zip(ours, before, strict=True)]
        memory = [pss_mb(one.pid) for one in ours]
    yield Row(
        what="agent and gateway, memory",
        ours=f"{sum(memory):.1f} MB PSS (agent {memory[0]:.1f}, gateway {memory[1]:.1f})",
        peer=f"limit: {PSS_MB:g} MB",
        ratio=sum(memory) / PSS_MB,
        target=1.0,
    )
    yield Row(
        what="agent and gateway, CPU while idle",
        ours=f"{sum(spent):.0f} ms a minute (agent {spent[0]:.0f}, gateway {spent[1]:.0f})",
        peer=f"limit: {IDLE_CPU_MS_A_MINUTE:g} ms",
        ratio=sum(spent) / IDLE_CPU_MS_A_MINUTE,
        target=1.0,
    )


def _cpu_ms(process: psutil.Process) -> float:
    """Of all its threads, from the scheduler: /proc/…/stat counts in steps of 10 ms."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in tasks) / 1e6
