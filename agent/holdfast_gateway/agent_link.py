"""The control socket: one agent at a time, a newer one replaces the older, and none changes nothing.

What there is to say is said when an agent connects; what it must not miss is kept until one does.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final, Protocol

import msgspec

from holdfast_gateway.control import LINE_BYTES_MAX, FromGateway, ToGateway, decode_to_gateway, encode
from holdfast_gateway.http_service import bind_unix

log = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o600
# An agent that does not read is hung; it is told everything anew when it comes back.
UNSENT_BYTES_MAX: Final = 4 * LINE_BYTES_MAX


class Listener(Protocol):
    """The gateway."""

    def agent_connected(self) -> None: ...

    def agent_said(self, message: ToGateway) -> None: ...


class AgentLink:
    """The listening end."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._agent: _AgentConnection | None = None

    async def listen(self, path: Path) -> None:
        """The run folder must be ours. Raises OSError."""
        bound = bind_unix(path, SOCKET_MODE)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _AgentConnection(self), sock=bound)

    @property
    def connected(self) -> bool:
        return self._agent is not None

    def say(self, message: FromGateway) -> bool:
        """Say it, if an agent is there."""
        return self._agent is not None and self._agent.say(message)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._agent is not None:
            self._agent.end()

    def came(self, agent: _AgentConnection) -> None:
        if self._agent is not None:
            log.warning("another agent connected; the older connection is closed")
            self._agent.end()
        self._agent = agent
        log.info("the agent is connected")
        self._listener.agent_connected()

    def said(self, agent: _AgentConnection, message: ToGateway) -> None:
        if agent is self._agent:
            self._listener.agent_said(message)

    def went(self, agent: _AgentConnection) -> None:
        if agent is self._agent:
            self._agent = None
            log.info("the agent is gone; what serves goes on")


class _AgentConnection(asyncio.Protocol):
    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._link.came(self)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            try:
                message = decode_to_gateway(bytes(line))
            except msgspec.DecodeError as error:
                log.error("the agent says what this gateway does not know (%s): are both of one version?", error)  # noqa: TRY400 - no trace: it is the agent's
                self.end()
                return
            self._link.said(self, message)
        if len(self._rest) > LINE_BYTES_MAX:
            log.error("the agent sends a line of more than %d bytes", LINE_BYTES_MAX)
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._link.went(self)

    def say(self, message: FromGateway) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            log.error("the agent does not read; its connection is closed")
            self.end()
            return False
        self._transport.write(encode(message))
        return True

    def end(self) -> None:
        """Close it; what it still says is not heard."""
        self._link.went(self)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
