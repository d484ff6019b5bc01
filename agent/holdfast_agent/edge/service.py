"""What passes between systemd and a service: ready, alive, stopping (sd_notify(3)), and sockets it opened (sd_listen_fds(3)).

Both protocols are a few lines over one environment variable each, so no library is needed. Without systemd, nothing happens.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final

from holdfast_shared.errors import Conflict

# Half of what systemd waits for, so that one late beat is no reason to kill us.
_BEATS: Final = 2
# sd_listen_fds(3): the first descriptor that is handed over.
_FIRST_DESCRIPTOR: Final = 3
_HANDED_OVER_MAX: Final = 16
# systemd reads at once; a stuck one must not hold up a loop.
_NOTIFY_S: Final = 1.0
# One line for `systemctl status`.
STATUS_LENGTH_MAX: Final = 200


class ServiceManager:
    """systemd as one service sees it. All is said from one thread: the one whose turning is watched."""

    def __init__(self) -> None:
        self._said = ""
        self._beat_s = _beat_every_s()
        self._due_s = 0.0

    @property
    def beat_s(self) -> float | None:
        """How often `alive` must be called at least, or None when nobody watches."""
        return self._beat_s

    def ready(self) -> None:
        """The service does now what it is for. May be repeated."""
        _notify("READY=1")

    def alive(self, now_s: float) -> None:
        """The loop has turned. Call it at every turn: it says so only when it is due."""
        if self._beat_s is not None and now_s >= self._due_s:
            self._due_s = now_s + self._beat_s
            _notify("WATCHDOG=1")

    def status(self, line: str) -> None:
        """What the service does now, for people; said when it changes."""
        line = " ".join(line.split())[:STATUS_LENGTH_MAX]
        if line != self._said:
            self._said = line
            _notify(f"STATUS={line}")

    def stopping(self) -> None:
        _notify("STOPPING=1")


def handed_over(name: str) -> list[socket.socket]:
    """The listening sockets that systemd opened under that name (`FileDescriptorName=`), once: they are the caller's to close.

    Child processes learn nothing of them. Raises Conflict for one that is no listening stream socket, or is open to other
    machines: then its unit is wrong, and serving on it would be worse than not serving.
    """
    count, names = _listen_fds()
    found = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count):
        os.set_inheritable(descriptor, False)
        named = names[descriptor - _FIRST_DESCRIPTOR] if descriptor - _FIRST_DESCRIPTOR < len(names) else ""
        if named != name:
            os.close(descriptor)
            continue
        found.append(_checked(socket.socket(fileno=descriptor)))
    return found


def _listen_fds() -> tuple[int, list[str]]:
    """How many, and their names; whatever comes later in this process, or from it, finds nothing any more."""
    count, process = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not count.isdigit():
        return 0, []
    return min(int(count), _HANDED_OVER_MAX), names


def _checked(given: socket.socket) -> socket.socket:
    next_step = "correct the socket unit (deploy/holdfast-gateway.socket is right)"
    try:
        listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if given.type != socket.SOCK_STREAM or not listening:
            raise Conflict("systemd handed over a socket that does not listen for streams", next_step=next_step)
        address = given.getsockname()
        if given.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            raise Conflict(
                f"{address[0]} can be reached from other machines", field="ListenStream", next_step=next_step
            )
        given.setblocking(False)
    except BaseException:
        given.close()
        raise
    return given


def _notify(state: str) -> None:
    """Send one state, such as `READY=1`. A service manager that is away is none of our business."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_NOTIFY_S)
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return


def _beat_every_s() -> float | None:
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 / _BEATS or None
