"""Whether a refuge is loaded before it is needed, and a shadow at all: by what the operator says, or by the memory that is left.

A warm refuge answers in milliseconds what the serving slot cannot, and costs a process; a cold one is started when it is
needed, and the requests wait for it as long as a request may take. Pure, but for the two files that the kernel tells it in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from holdfast_agent.edge.configuration import Standby

MEMINFO: Final = Path("/proc/meminfo")
VMSTAT: Final = Path("/proc/vmstat")
# A worker of a small model: Python, numpy and a runtime. Measured: 63 MB resident with onnxruntime.
WORKER_BYTES: Final = 72 * 1024**2
# A session holds its file about twice (measured with onnxruntime).
FILE_COPIES: Final = 2
# What is left for everybody else on the device.
LEFT_SHARE_MIN: Final = 0.10
LEFT_BYTES_MIN: Final = 48 * 1024**2
# Cold again only when clearly too little is left, so that a slot does not come and go at the border.
TOO_LITTLE: Final = 0.5
# Nobody depends on a shadow, so it is let go before a refuge is.
TOO_LITTLE_TO_SHADOW: Final = 0.75
# A refuge that was started for a request is kept at least so long: who needed it once needs it soon.
KEPT_S: Final = 60.0


class Memory(NamedTuple):
    """Of the device, as the kernel says: what there is, and what can be had without swapping."""

    total_bytes: int
    available_bytes: int

    @classmethod
    def now(cls) -> Memory:
        """Unlimited where the kernel does not say: then nothing is kept cold for it."""
        found: dict[str, int] = {}
        try:
            for line in MEMINFO.read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    found[name] = int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            found = {}
        return cls(found.get("MemTotal", 2**62), found.get("MemAvailable", 2**62))

    @property
    def reserve_bytes(self) -> int:
        return max(LEFT_BYTES_MIN, int(self.total_bytes * LEFT_SHARE_MIN))


def ended_for_memory() -> int:
    """How many processes the kernel has ended since the machine started, for want of memory; 0 where it does not say."""
    try:
        lines = VMSTAT.read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def needed_bytes(file_bytes: int) -> int:
    """What a worker will take, from its model's files."""
    return WORKER_BYTES + FILE_COPIES * file_bytes


def is_warm(standby: Standby, memory: Memory, refuge_bytes: int, starting_bytes: int = 0) -> bool:
    """Whether to load the refuge now; `starting_bytes` is what others that are being loaded will take."""
    if standby != "auto":
        return standby == "warm"
    return memory.available_bytes - starting_bytes - refuge_bytes >= memory.reserve_bytes


def lets_go(standby: Standby, memory: Memory) -> bool:
    """Whether a refuge that is loaded, and has had nothing to do for KEPT_S, is ended."""
    if standby != "auto":
        return standby == "cold"
    return memory.available_bytes < memory.reserve_bytes * TOO_LITTLE


def is_shadowed(memory: Memory, shadow_bytes: int) -> bool:
    """Whether to load a release that only shadows; no operator's word keeps one on a device that has no room."""
    return memory.available_bytes - shadow_bytes >= memory.reserve_bytes


def lets_shadow_go(memory: Memory) -> bool:
    """Whether one that is loaded is ended, whatever it does."""
    return memory.available_bytes < memory.reserve_bytes * TOO_LITTLE_TO_SHADOW
