"""How much and how slowly a connection may say something, and for what it is waited."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

HEADERS_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 100
# A client on this device sends its headers in one write. Slower is stuck, or means harm.
HEADERS_S: Final = 10.0
# The largest body that is allowed, over a loopback that is busy.
BODY_S: Final = 60.0
# A client that reads nothing of its answer.
WRITE_S: Final = 30.0
# Long: an application that asks now and then should not find its connection closed.
IDLE_S: Final = 300.0
LINGER_S: Final = 2.0


class Phase(Enum):
    """What the connection waits for."""

    IDLE = auto()
    HEADERS = auto()
    BODY = auto()
    LINGER = auto()  # the last answer is written; the peer should close


LIMIT_S: Final = {Phase.IDLE: IDLE_S, Phase.HEADERS: HEADERS_S, Phase.BODY: BODY_S, Phase.LINGER: LINGER_S}
