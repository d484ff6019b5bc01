"""The one TOML file of a device, read by the agent and the gateway. Every fault in it is reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from holdfast_agent.edge import time_zone, toml_faults
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.identifiers import DeviceField, NameField
from holdfast_shared.wire.assignment import TimeSpan
from holdfast_shared.wire.release import ShortText
from holdfast_shared.wire.report import Protection

SIZE_BYTES_MAX: Final = 64 * 1024
# `sun_path` of Linux' sockaddr_un (108 bytes) with its closing NUL.
SOCKET_PATH_BYTES_MAX: Final = 107
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
# Under it, a download of the smallest model would look like a held connection.
BYTES_PER_S_LEAST: Final = 4096
BytesPerSecond = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


# The services start in `/`, a person's command elsewhere: both must mean the same file.
FilePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]+$", max_length=4096, examples=["/var/lib/holdfast"])]
# Workers see these folders, and few others.
LibraryPath = Annotated[
    str, msgspec.Meta(pattern=r"^/(usr|lib)/[^\x00]+$", max_length=256, examples=["/usr/lib/libedgetpu.so.1"])
]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this is. `state` is the state directory; `run` is for sockets, by default `<state>/run`.

    `accelerators` are what a variant of a model may ask for by name, such as `coral`; `delegates` the libraries by which TFLite
    computes on them, where a worker may read them.
    `time_zone` is an IANA name, for windows and days; empty is the system's own.
    """

    id: DeviceField
    fleet: NameField
    state: FilePath
    key: FilePath
    membership: FilePath
    authorities: FilePath
    run: FilePath | Literal[""] = ""
    accelerators: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=16)] = ()
    delegates: Annotated[dict[ShortText, LibraryPath], msgspec.Meta(max_length=16)] = {}
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`poll_s`: how often assignments are asked for over HTTP, jittered, even while MQTT is connected."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^/]+$", examples=["http://127.0.0.1:8080"])]
    poll_s: Seconds = 600.0


class Broker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, msgspec.Meta(pattern=r"^mqtts?://[^/:]+(:\d+)?$", examples=["mqtt://127.0.0.1:1883"])]
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60


class Agent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`verify_s`: how often every slot's bytes are read again, jittered, while nothing else is to be done."""

    health_s: Seconds = 60.0
    verify_s: Annotated[float, msgspec.Meta(gt=0, le=31 * 86_400)] = 86_400.0
    spool_reports_max: Annotated[int, msgspec.Meta(ge=10, le=1_000_000)] = 10_000


# Whether the refuge is loaded before it is needed; `auto`: where the device has the memory.
Standby = Literal["auto", "warm", "cold"]


class Fetch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bytes_per_s_max`: 0 is as fast as it goes. `deadline_s`: of one fetch, from whose bytes the next goes on.

    `windows`: when downloads may be made; empty is always.
    """

    bytes_per_s_max: BytesPerSecond = 0
    deadline_s: Annotated[float, msgspec.Meta(ge=60, le=18_000)] = 3600.0
    windows: tuple[TimeSpan, ...] = ()


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`metered`: `yes`, `no`, or the path of a file that holds one of them, which a hook of the system writes.

    Downloads on a metered network stop at `metered_bytes_per_day`, to go on the next day; those of a device that leaves a
    condemned release may go on past it if `urgent_may_exceed`.
    """

    metered: Annotated[str, msgspec.Meta(pattern=r"^(yes|no|/.{1,4000})$", examples=["yes", "no", "/run/metered"])] = (
        "no"
    )
    metered_bytes_per_day: Annotated[int, msgspec.Meta(ge=0)] = 50_000_000
    urgent_may_exceed: bool = False


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`listen` is a loopback address with a port (0: any free one) for applications on this device.

    `standby`: a `warm` refuge answers at once what the serving slot cannot; a `cold` one is started then.
    `worker_…` and `isolation_off`: how workers are confined, from outside and by themselves.
    """

    listen: Annotated[
        str, msgspec.Meta(pattern=r"^(127\.0\.0\.1|\[::1\]|localhost):\d+$", examples=["127.0.0.1:8000"])
    ] = "127.0.0.1:8000"
    body_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=1024**3)] = 64 * 1024**2
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    standby: Standby = "auto"
    worker_user: Annotated[str, msgspec.Meta(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")] = ""
    worker_nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 1
    worker_tasks_max: Annotated[int, msgspec.Meta(ge=8, le=4096)] = 64
    isolation_off: tuple[Protection, ...] = ()


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: Device
    server: Server
    broker: Broker
    agent: Agent = Agent()
    fetch: Fetch = Fetch()
    network: Network = Network()
    gateway: Gateway = Gateway()

    @property
    def folder(self) -> StateFolder:
        return StateFolder(Path(self.device.state), Path(self.device.run) if self.device.run else None)


def load(path: Path) -> Configuration:
    """Read the file. Raises Missing or Malformed whose message lists every wrong field, not the first alone."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"cannot read {path}: {error}", next_step="write it after deploy/agent.toml") from error
    if len(text) > SIZE_BYTES_MAX:
        raise Malformed(f"{path} is larger than {SIZE_BYTES_MAX} bytes", next_step="write it after deploy/agent.toml")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Malformed(f"{path} is not TOML: {error}", next_step="correct that line") from error
    faults = [*toml_faults.of(tables, Configuration), *_faults_beyond_types(tables)]
    if faults:
        raise Malformed(f"{path} has {len(faults)} fault(s): " + "; ".join(faults), next_step="correct them all")
    return msgspec.convert(tables, Configuration)


def _faults_beyond_types(tables: dict[str, Any]) -> Iterator[str]:
    zone = _text(tables, "device", "time_zone")
    if zone and not time_zone.is_known(zone):
        yield f"[device] time_zone: {zone!r} is not known here; write an IANA name such as Europe/Berlin"
    cap = tables["fetch"].get("bytes_per_s_max") if isinstance(tables.get("fetch"), dict) else None
    if isinstance(cap, int) and 0 < cap < BYTES_PER_S_LEAST:
        yield f"[fetch] bytes_per_s_max: {cap} is too little to fetch anything; at least {BYTES_PER_S_LEAST}, or 0 for no cap"
    for section, name in (("server", "url"), ("broker", "url"), ("gateway", "listen")):
        text = _text(tables, section, name)
        why = _fault_of_address(text if "://" in text else f"//{text}") if text else ""
        if why:
            yield f"[{section}] {name}: {text!r} {why}"
    state, run = _text(tables, "device", "state"), _text(tables, "device", "run")
    if state:
        yield from _fault_of_sockets(StateFolder(Path(state), Path(run) if run else None))


def _fault_of_address(url: str) -> str:
    """What a connection would fail with, and a pattern does not see."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
        (host or "").encode("idna")  # as whoever looks it up does, who would end with a UnicodeError
    except ValueError as error:  # the standard library's words: `Port out of range 0-65535`
        return f"is no address: {error}"
    if not host:
        return "names no host"
    return "names port 0, where nobody listens" if port == 0 and parts.scheme else ""


def _fault_of_sockets(folder: StateFolder) -> Iterator[str]:
    """A socket whose path is longer than the kernel takes."""
    longest = max((folder.gateway_socket, folder.control_socket, folder.agent_socket), key=lambda one: len(str(one)))
    if len(str(longest).encode()) > SOCKET_PATH_BYTES_MAX:
        yield (
            f"[device] run: {longest} has {len(str(longest).encode())} bytes, and a socket's path at most"
            f' {SOCKET_PATH_BYTES_MAX}; name a shorter folder for sockets, such as run = "/run/holdfast"'
        )


def _text(tables: dict[str, Any], section: str, name: str) -> str:
    """The field, as far as there is one and it is a text."""
    table = tables.get(section)
    found = table.get(name) if isinstance(table, dict) else None
    return found if isinstance(found, str) else ""
