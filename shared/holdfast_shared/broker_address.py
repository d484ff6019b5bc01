"""Where a broker is: `mqtt[s]://[user:password@]host[:port]`, read alike by server, command and device."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from holdfast_shared.errors import Malformed

_SECRET: Final = re.compile(r"//.*@")
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


class BrokerAddress(NamedTuple):
    """As text it never shows the password."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str, *, field: str = "--mqtt") -> BrokerAddress:
        """Raises Malformed that names `field`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            shown = _SECRET.sub("//…@", url)
            raise Malformed(
                f"{shown!r} is no broker address", field=field, next_step="write it like mqtt://127.0.0.1:1883"
            )
        return cls(
            parts.hostname,
            port or _PORTS[parts.scheme],
            parts.scheme == "mqtts",
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
        )

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"
