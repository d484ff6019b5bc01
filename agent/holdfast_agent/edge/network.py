"""One thread that waits for many sockets. A session has its own; a process with hundreds of sessions may let them share one.

paho's own loop waits with `select`, which fails silently from descriptor 1024 on, wakes each of its threads every second, and
reconnects without jitter; here one `epoll` serves all. A member that blocks (connecting to a broker that does not answer) holds
the others back for so long: share a thread only where connecting is quick, as on loopback.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

# How late the timers may be of a member that waits for something to be due, and of one that is at rest: a device that has
# nothing to do should not wake four times a second for it.
TICK_S: Final = 0.25
REST_S: Final = 1.0
JOIN_S: Final = 10.0

log: Final = logging.getLogger(__name__)


class Member(Protocol):
    """Called on the network's thread only. What it raises is logged, and ends nothing."""

    def turn(self, now: float) -> float:
        """Look after what is due (monotonic seconds); the seconds after which to look again. Also called after `ready`, and
        whenever something was called on the thread."""

    def ready(self, *, readable: bool, writable: bool) -> None:
        """Its watched socket can be read or written."""


class Network:
    """`start` once, `stop` once. `call` from any thread; the rest from the thread itself."""

    def __init__(self, name: str = "network") -> None:
        self._selector = selectors.DefaultSelector()
        self._members: set[Member] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, with whatever was called before. From another thread."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the thread, soon and in order."""
        self._calls.append(work)
        self._wake()

    def join(self, member: Member) -> None:
        self._members.add(member)

    def leave(self, member: Member) -> None:
        self._members.discard(member)

    def watch(self, descriptor: int, member: Member, *, writing: bool) -> None:
        """Tell `member` when its socket can be read, or (`writing`) written. May be repeated."""
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        try:
            key = self._selector.get_key(descriptor)
        except KeyError:
            self._selector.register(descriptor, interest, member)
            return
        if key.events != interest:
            self._selector.modify(descriptor, interest, member)

    def forget(self, descriptor: int) -> None:
        """Before the socket is closed. May be repeated."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake already; closed: it has ended
            self._wake_writer.send(b"\0")

    def _run(self) -> None:
        due = float("-inf")
        while True:  # ends once it is stopping and every call is done
            for key, mask in self._selector.select(max(0.0, due - time.monotonic())):
                member: Member | None = key.data
                if member is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_reader.recv(4096)
                    continue
                _guarded(
                    member.ready,
                    readable=bool(mask & selectors.EVENT_READ),
                    writable=bool(mask & selectors.EVENT_WRITE),
                )
                due = min(due, _turned(member))
            due = float("-inf") if self._calls else due
            while self._calls:  # a call may add another; none of ours adds itself
                _guarded(self._calls.popleft())
            if self._stopping.is_set() and not self._calls:
                return
            if time.monotonic() >= due:
                due = min(map(_turned, tuple(self._members)), default=time.monotonic() + REST_S)


def _turned(member: Member) -> float:
    """When it wants to be turned again."""
    now = time.monotonic()
    try:
        return now + member.turn(now)
    except Exception:  # one member's bug must not silence the others on the thread that they share
        log.exception("a network member failed")
        return now + TICK_S


def _guarded(work: Callable[..., None], *arguments: object, **named: object) -> None:
    try:
        work(*arguments, **named)
    except Exception:  # whatever one member does, the others and the thread go on
        log.exception("a network member failed")
