"""The listening sockets, and what all connections share: how many there may be, and how much they may hold.

Loopback TCP and a Unix socket for applications on this device; whoever may use the socket is told by its group.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_agent.edge import service
from holdfast_agent.edge.configuration import Gateway as GatewaySection
from holdfast_gateway.admission import Admission
from holdfast_gateway.frames import BUFFER_BYTES
from holdfast_gateway.heap import Heap
from holdfast_gateway.http_connection import Connection
from holdfast_gateway.http_message import Request
from holdfast_gateway.open_inference import OpenInference

# Bodies that are being read or answered, of all connections, in units of the largest that is allowed.
BODIES_HELD_MAX: Final = 4
# Refused connections that may wait to have read why.
REFUSED_MAX: Final = 64
BACKLOG: Final = 128
SOCKET_MODE: Final = 0o660
# `FileDescriptorName=` of the socket unit.
HANDED_OVER_AS: Final = "gateway"


class Addresses(NamedTuple):
    """Where it listens: a URL and a path. `ours`: the path is ours to remove in the end."""

    http: str
    unix: Path
    ours: bool


class HttpService:
    """`listen`, then `sweep` now and then, then `stop`."""

    def __init__(self, section: GatewaySection, application: OpenInference) -> None:
        self.read_buffer = memoryview(bytearray(BUFFER_BYTES))
        self.body_bytes_max = section.body_bytes_max
        self.stopping = False
        self.now = asyncio.get_running_loop().time()
        self._section = section
        self._application = application
        self._connections: set[Connection] = set()
        self._held = 0
        self._heap = Heap()
        self._servers: list[asyncio.Server] = []

    async def listen(self, unix: Path) -> Addresses:
        """Listen on both: on the sockets that systemd opened, and on our own for what it did not.

        Connections made while no gateway runs wait in systemd's, and a restart refuses none. Raises OSError when the port is
        taken, Conflict when a socket that was handed over is open to other machines.
        """
        loop = asyncio.get_running_loop()
        given = service.handed_over(HANDED_OVER_AS)
        for one in given:  # not create_unix_server, which may remove the path in the end: it is systemd's
            self._servers.append(await loop.create_server(lambda: Connection(self), sock=one, backlog=BACKLOG))
        tcp = next((one for one in given if one.family != socket.AF_UNIX), None)
        theirs = next((one for one in given if one.family == socket.AF_UNIX), None)
        if tcp is None:
            host, _, port = self._section.listen.rpartition(":")
            server = await loop.create_server(lambda: Connection(self), host.strip("[]"), int(port), backlog=BACKLOG)
            self._servers.append(server)
            tcp = server.sockets[0]
        if theirs is None:
            bound = bind_unix(unix, SOCKET_MODE)
            self._servers.append(await loop.create_unix_server(lambda: Connection(self), sock=bound, backlog=BACKLOG))
        host, port = tcp.getsockname()[:2]
        http = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return Addresses(http, Path(theirs.getsockname()) if theirs is not None else unix, ours=theirs is None)

    def sweep(self, now: float) -> None:
        """Once a second: end connections that are past their deadlines."""
        self.now = now
        for connection in list(self._connections):
            connection.sweep(now)
        if not self._held:
            self._heap.rests()

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
        if count > 0:
            self._heap.holds(self._held)
        return True

    def serve(self, request: Request, connection: Connection) -> None:
        self._application.serve(request, connection)


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A Unix socket at `path`, of that mode from its first moment, in place of one that was left. The run folder must be ours."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
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
