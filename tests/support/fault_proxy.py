"""A TCP proxy that misbehaves as its test says, and changes its mind while it runs: the network between a device and its server.

`Faults` say what happens to bytes and connections from now on, those under way included. Bytes from the server are counted
over all connections, so "after n bytes" means the same however often a client asks again; a fault that happens once is then
over.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

PIECE_BYTES: Final = 16 * 1024
# What has passed and was not read yet: little, so that `passed` is what the client was given.
SEND_BUFFER_BYTES: Final = 64 * 1024
LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the network. The default: nothing.

    `latency_s` before each piece either way. `bytes_per_s`: of all that comes from the server. `cut_after`, `reset_after`: of
    bytes from the server, from when this was set; the connection then ends (FIN), or breaks (RST), once. `corrupt_at`: the
    byte at that offset is flipped, once. `stall_after`: from then on nothing is read or sent, and nothing is closed.
    `half_open`: connections are accepted, and never answered. `refuse`: they are closed as soon as they come.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    cut_after: int | None = None
    reset_after: int | None = None
    corrupt_at: int | None = None
    stall_after: int | None = None
    half_open: bool = False
    refuse: bool = False


class FaultProxy:
    """Listens on loopback before `url`'s host and port. Steer it with `set`; count with `passed` and `connections`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.passed = 0  # bytes from the server that a client was sent
        self._faults, self._since = Faults(), 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def set(self, **faults: Any) -> None:
        """From now on these faults and no others; bytes count from here."""
        with self._lock:
            self._faults, self._since = replace(Faults(), **faults), self.passed

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            _shut(*self._open)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._connected, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connected(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._faults.refuse:
                return
            with self._lock:
                self._open.add(client)
            try:
                if not self._held(client):
                    self._relay(client)
            finally:
                with self._lock:
                    self._open.discard(client)

    def _held(self, client: socket.socket) -> bool:
        """Whether it is left without an answer, for as long as it likes; it goes on when the fault is over."""
        while self._faults.half_open and not self._closing.wait(LOOK_S):
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if not client.recv(1, socket.MSG_PEEK):
                    return True
        return self._closing.is_set()

    def _relay(self, client: socket.socket) -> None:
        client.setblocking(True)
        with socket.create_connection(self._upstream, timeout=10) as server:
            server.settimeout(None)
            with self._lock:
                self._open.add(server)
            ended = threading.Event()
            upward = threading.Thread(target=self._upward, args=(client, server, ended), daemon=True)
            upward.start()
            reset = False
            try:
                reset = self._downward(server, client)
            finally:
                ended.set()
                if not reset:
                    _shut(server, client)
                upward.join(10)
                with self._lock:
                    self._open.discard(server)
            if reset:  # nobody reads from it any more: what is unsent is thrown away, and the other end hears RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _upward(self, client: socket.socket, server: socket.socket, ended: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                if not select.select([client], [], [], LOOK_S)[0]:
                    continue
                piece = client.recv(PIECE_BYTES)
                if not piece:
                    server.shutdown(socket.SHUT_WR)
                    return
                self._wait(self._faults.latency_s)
                self._wait_while_stalled()
                server.sendall(piece)

    def _downward(self, server: socket.socket, client: socket.socket) -> bool:
        """Whether it ends in a reset."""
        while piece := server.recv(self._piece_bytes()):
            faults = self._faults
            self._wait(faults.latency_s + (len(piece) / faults.bytes_per_s if faults.bytes_per_s else 0.0))
            self._wait_while_stalled()
            sent, ending = self._spoilt(piece)
            if sent:
                client.sendall(sent)
            if ending:
                return ending == "reset"
        return False

    def _spoilt(self, piece: bytes) -> tuple[bytes, str]:
        """What is sent of it, and how the connection then ends, if it does."""
        with self._lock:
            faults, at = self._faults, self.passed - self._since
            if faults.corrupt_at is not None and at <= faults.corrupt_at < at + len(piece):
                where = faults.corrupt_at - at
                piece = piece[:where] + bytes([piece[where] ^ 0x01]) + piece[where + 1 :]
                self._faults = replace(self._faults, corrupt_at=None)
            ending = ""
            for kind, after in (("cut", faults.cut_after), ("reset", faults.reset_after)):
                if after is not None and at + len(piece) >= after:
                    piece, ending = piece[: max(0, after - at)], kind
                    self._faults = replace(self._faults, cut_after=None, reset_after=None)
                    break
            self.passed += len(piece)
            return piece, ending

    def _piece_bytes(self) -> int:
        """A twentieth of a second's worth: a slow line is slow evenly."""
        rate = self._faults.bytes_per_s
        return PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, int(rate / 20)))

    def _wait_while_stalled(self) -> None:
        while not self._closing.is_set():
            after = self._faults.stall_after
            if after is None or self.passed - self._since < after:
                return
            self._closing.wait(LOOK_S)

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._closing.wait(seconds)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running_fault_proxy(url: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
