"""The listening sockets, and what all connections share: how many there may be, and how much they may hold.

Loopback TCP and a Unix socket for applications on this device; whoever may use the socket is told by its group.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from holdfast_agent.edge.configuration import Gateway as GatewaySection
from holdfast_gateway.frames import BUFFER_BYTES
from holdfast_gateway.http_connection import Admission, Connection
from holdfast_gateway.http_message import Request
from holdfast_gateway.open_inference import OpenInference
from holdfast_shared.errors import Conflict

# Bodies that are being read or answered, of all connections, in units of the largest that is allowed.
BODIES_HELD_MAX: Final = 4
# Refused connections that may wait to have read why.
REFUSED_MAX: Final = 64
BACKLOG: Final = 128
SOCKET_MODE: Final = 0o660


class HttpService:
    """`listen`, then `sweep` now and then, then `stop`."""

    def __init__(self, section: GatewaySection, application: OpenInference) -> None:
        self.read_buffer = memoryview(bytearray(BUFFER_BYTES))
        self.body_bytes_max = section.body_bytes_max
        self.stopping = False
        self._section = section
        self._application = application
        self._connections: set[Connection] = set()
        self._held = 0
        self._servers: list[asyncio.Server] = []

    async def listen(self, unix: Path) -> str:
        """Listen on both; the TCP address as a URL. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        host, _, port = self._section.listen.rpartition(":")
        tcp = await loop.create_server(lambda: Connection(self), host.strip("[]"), int(port), backlog=BACKLOG)
        self._servers.append(tcp)
        bound = bind_unix(unix, SOCKET_MODE)
        self._servers.append(await loop.create_unix_server(lambda: Connection(self), sock=bound, backlog=BACKLOG))
        address = tcp.sockets[0].getsockname()
        return f"http://[{address[0]}]:{address[1]}" if ":" in address[0] else f"http://{address[0]}:{address[1]}"

    def sweep(self, now: float) -> None:
        """Once a second: end connections that are past their deadlines."""
        for connection in list(self._connections):
            connection.sweep(now)

    def stop(self) -> None:
        """Take no more connections, and answer what is under way."""
        self.stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.stop()

    @property
    def busy(self) -> bool:
        """Some connection is owed an answer."""
        return any(connection.busy for connection in self._connections)

    # -- what connections ask

    def connected(self, connection: Connection) -> Admission:
        self._connections.add(connection)
        if len(self._connections) <= self._section.connections_max:
            return Admission.WELCOME
        over = len(self._connections) - self._section.connections_max
        return Admission.TOO_MANY if over <= REFUSED_MAX else Admission.FLOOD

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def hold(self, count: int) -> bool:
        if count > 0 and self._held + count > BODIES_HELD_MAX * self.body_bytes_max:
            return False
        self._held += count
        return True

    def serve(self, request: Request, connection: Connection) -> None:
        self._application.serve(request, connection)


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A Unix socket at `path`, of that mode from its first moment. Raises Conflict when somebody listens there."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            bound.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)  # left by one that was killed
        else:
            raise Conflict(f"a gateway is running already: {path} answers", next_step="stop it first")
        bound.close()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~mode)
        try:
            bound.bind(str(path))
        finally:
            os.umask(before)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
