"""The agent's end of the control socket: connects, and connects again; lines in, events out.

Nothing is kept for a gateway that is away: both sides say the whole of what is when they meet again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from holdfast_agent.core.events import GatewayConnected, GatewayGone, GatewaySaid
from holdfast_gateway import control
from holdfast_gateway.control import LINE_BYTES_MAX, ToGateway

# The gateway is on this device: it is there at once, or it is starting.
RECONNECT_S: Final = 0.2
# A gateway that does not read for so long is hung; its supervisor restarts it, and we connect again.
SEND_S: Final = 5.0
STOP_S: Final = 2.0

log: Final = logging.getLogger(__name__)

ControlEvent = GatewayConnected | GatewayGone | GatewaySaid


class ControlClient:
    """A thread that reads. `emit` is called on it; `say` may be called from one other thread."""

    def __init__(self, path: Path, emit: Callable[[ControlEvent], None]) -> None:
        self._path, self._emit = path, emit
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="gateway-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the connection; the gateway goes on serving as it was last told."""
        self._stopping.set()
        self._close()
        self._thread.join(STOP_S)

    def say(self, message: ToGateway) -> None:
        """Send it, or let it be lost when the gateway is away: it is said anew after `GatewayConnected`."""
        with self._lock:
            connection = self._connection
        if connection is None:
            return
        try:
            connection.sendall(control.encode(message))
        except OSError as error:
            log.warning("cannot tell the gateway %s: %s", type(message).__name__, error)
            self._close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            connection = self._connected()
            if connection is None:
                self._stopping.wait(RECONNECT_S)
                continue
            self._emit(GatewayConnected())
            try:
                self._read(connection)
            except (OSError, msgspec.DecodeError) as error:
                if not self._stopping.is_set():
                    log.warning("the control connection ended: %s", error)
            finally:
                self._close()
                self._emit(GatewayGone())
            self._stopping.wait(RECONNECT_S)

    def _connected(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(SEND_S)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            return None
        with self._lock:
            self._connection = connection
        if self._stopping.is_set():
            self._close()
        return connection

    def _read(self, connection: socket.socket) -> None:
        """Until the other end closes. Raises OSError, and DecodeError for a line that is none of ours."""
        waiting = bytearray()
        while True:
            try:
                received = connection.recv(64 * 1024)
            except TimeoutError:
                continue  # a quiet gateway is a healthy one
            if not received:
                return
            waiting += received
            *lines, rest = waiting.split(b"\n")
            waiting = rest
            if len(waiting) > LINE_BYTES_MAX:
                raise msgspec.DecodeError(f"a line longer than {LINE_BYTES_MAX} bytes")
            for line in lines:
                self._emit(GatewaySaid(control.decode_from_gateway(bytes(line))))

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
