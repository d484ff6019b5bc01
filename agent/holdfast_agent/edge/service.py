"""What systemd is told (sd_notify(3)): ready, alive, stopping. Without systemd, nothing."""

from __future__ import annotations

import os
import socket
from typing import Final

# Half of what systemd waits for, so that one late beat is no reason to kill us.
_BEATS: Final = 2


def notify(state: str) -> None:
    """Send one state, such as `READY=1`. A service manager that is away is none of our business."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return


def beat_every_s() -> float | None:
    """How often `WATCHDOG=1` is due, or None when nobody watches."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 / _BEATS
