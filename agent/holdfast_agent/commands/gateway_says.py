"""What the gateway on this device answers with now, asked as any application would: the protocol's repository index."""

from __future__ import annotations

import contextlib
import time
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway.control import Shadowing
from holdfast_shared.wire.report import Isolation

# It is on this device, and answers this itself.
ASK_S: Final = 3.0
ANSWER_BYTES_MAX: Final = 256 * 1024
_LOOK_EVERY_S: Final = 0.05


class Addresses(msgspec.Struct, frozen=True):
    """`StateFolder.gateway_addresses`."""

    http: str
    unix: str
    pid: int


class Answering(msgspec.Struct, frozen=True):
    """A release that is loaded, by the gateway's word. READY is only one that answers; `reason` says why another does not."""

    name: str
    version: str
    state: str
    reason: str = ""

    @property
    def answers(self) -> bool:
        return self.state == "READY"


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses` None: none runs. `why_not`: it should answer, and does not."""

    addresses: Addresses | None = None
    pipelines: tuple[Answering, ...] = ()
    isolation: Isolation = Isolation()
    shadows: tuple[Shadowing, ...] = ()
    why_not: str = ""

    def version_of(self, pipeline: str) -> str:
        """The first choice: of a trial of a share of the requests, the release on trial."""
        return next((one.version for one in self.pipelines if one.name == pipeline and one.answers), "")

    def answer(self) -> dict[str, Any] | None:
        """For a program; None when no gateway runs."""
        if self.addresses is None:
            return None
        return {
            "http": self.addresses.http,
            "unix": self.addresses.unix,
            "answers": {one.name: self.version_of(one.name) or None for one in self.pipelines},
            "isolation": msgspec.to_builtins(self.isolation),
            "shadows": msgspec.to_builtins(self.shadows),
            "why_not": self.why_not,
        }

    def lines(self) -> list[str]:
        if self.addresses is None:
            return ["gateway: none runs"]
        if self.why_not:
            return [f"gateway at {self.addresses.http}: {self.why_not}"]
        said = [
            f"  {one.name}: {one.version}" if one.answers else f"  {one.name}: not {one.version or 'any'}: {one.reason}"
            for one in self.pipelines
        ]
        first = f"gateway at {self.addresses.http} answers with" + ("" if said else " nothing yet")
        return [first, *said, *map(shadow_line, self.shadows), *isolation_lines(self.isolation)]


def now(folder: StateFolder) -> Gateway:
    """Ask it, within ASK_S."""
    try:
        addresses = msgspec.json.decode(folder.gateway_addresses.read_bytes(), type=Addresses)
    except FileNotFoundError:
        return Gateway()
    except (OSError, msgspec.DecodeError) as error:
        return Gateway(addresses=Addresses("", "", 0), why_not=f"{folder.gateway_addresses} cannot be read: {error}")
    try:
        return _asked(addresses)
    except (OSError, HTTPException, msgspec.DecodeError) as error:
        return Gateway(addresses=addresses, why_not=f"it does not answer: {type(error).__name__}: {str(error)[:200]}")


def until_it_serves(folder: StateFolder, pipeline: str, version: str, *, within_s: float) -> bool:
    """Whether the gateway answers with that version before the time is up. False at once when none runs."""
    deadline = time.monotonic() + within_s
    while True:
        found = now(folder)
        if found.version_of(pipeline) == version:
            return True
        if found.addresses is None or time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)  # a person waits for one command; the gateway tells nobody


def shadow_line(one: Shadowing) -> str:
    """For a person: what shadows, and how it agrees."""
    share = (
        f"agrees on {100 * one.agreed / one.compared:.2f} % of {one.compared} rows" if one.compared else "no row yet"
    )
    why = f": {one.detail}" if one.state != "ready" and one.detail else ""
    return f"  {one.name}: shadowed by {one.version} ({one.state}{why}), {share}, {one.dropped} requests dropped"


def isolation_lines(isolation: Isolation) -> list[str]:
    """For a person: what holds, then what does not, and why."""
    applied = ", ".join(f"{name} ({how})" for name, how in sorted(isolation.applied.items()))
    lines = [f"workers are confined: {applied or 'by nothing'}"]
    return [*lines, *(f"  not {name}: {why}" for name, why in sorted(isolation.degraded.items()))]


class _Server(msgspec.Struct, frozen=True):
    """`/v2`. A gateway of an older version is silent about isolation and shadows."""

    isolation: Isolation = Isolation()
    shadows: tuple[Shadowing, ...] = ()


def _asked(addresses: Addresses) -> Gateway:
    parts = urlsplit(addresses.http)
    with contextlib.closing(HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_S)) as connection:
        connection.request("POST", "/v2/repository/index", b"{}")
        index = connection.getresponse().read(ANSWER_BYTES_MAX)
        connection.request("GET", "/v2")
        server = connection.getresponse().read(ANSWER_BYTES_MAX)
    said = msgspec.json.decode(server, type=_Server)
    return Gateway(
        addresses=addresses,
        pipelines=msgspec.json.decode(index, type=tuple[Answering, ...]),
        isolation=said.isolation,
        shadows=said.shadows,
    )
