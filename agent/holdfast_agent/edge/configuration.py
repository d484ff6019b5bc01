"""The one TOML file of a device, read by the agent and the gateway. Every fault in it is reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from holdfast_agent.edge import time_zone
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


# Workers see these folders, and few others.
LibraryPath = Annotated[str, msgspec.Meta(pattern=r"^/(usr|lib)/[^\x00]+$", max_length=256)]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this is. `state` is the state directory; `run` is for sockets, by default `<state>/run`.

    `accelerators` are what a variant of a model may ask for by name, such as `coral`; `delegates` the libraries by which TFLite
    computes on them, where a worker may read them.
    `time_zone` is an IANA name, for windows and days; empty is the system's own.
    """

    id: DeviceField
    fleet: NameField
    state: str
    key: str
    membership: str
    authorities: str
    run: str = ""
    accelerators: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=16)] = ()
    delegates: Annotated[dict[ShortText, LibraryPath], msgspec.Meta(max_length=16)] = {}
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`poll_s`: how often assignments are asked for over HTTP, jittered, even while MQTT is connected."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^/]+$")]
    poll_s: Seconds = 600.0


class Broker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, msgspec.Meta(pattern=r"^mqtts?://[^/:]+(:\d+)?$")]
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

    metered: Annotated[str, msgspec.Meta(pattern=r"^(yes|no|/.{1,4000})$")] = "no"
    metered_bytes_per_day: Annotated[int, msgspec.Meta(ge=0)] = 50_000_000
    urgent_may_exceed: bool = False


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`listen` is a loopback address with a port (0: any free one) for applications on this device.

    `standby`: a `warm` refuge answers at once what the serving slot cannot; a `cold` one is started then.
    `worker_…` and `isolation_off`: how workers are confined, from outside and by themselves.
    """

    listen: Annotated[str, msgspec.Meta(pattern=r"^(127\.0\.0\.1|\[::1\]|localhost):\d+$")] = "127.0.0.1:8000"
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
    faults = _faults(tables)
    if faults:
        raise Malformed(f"{path} has {len(faults)} fault(s): " + "; ".join(faults), next_step="correct them all")
    found = msgspec.convert(tables, Configuration)
    _check_sockets(path, found.folder)
    return found


def _check_sockets(path: Path, folder: StateFolder) -> None:
    """Raises Malformed when a socket's path is longer than the kernel takes."""
    longest = max((folder.gateway_socket, folder.control_socket, folder.agent_socket), key=lambda one: len(str(one)))
    if len(str(longest).encode()) > SOCKET_PATH_BYTES_MAX:
        raise Malformed(
            f"{path}: {longest} has {len(str(longest).encode())} bytes; a socket's path has at most {SOCKET_PATH_BYTES_MAX}",
            field="[device] run",
            next_step='name a shorter folder for sockets, such as run = "/run/holdfast"',
        )


def _faults(tables: dict[str, Any]) -> list[str]:
    """Every fault: each field is converted alone, so that one does not hide the next."""
    faults = [f"[{name}] is no table here" for name in tables if name not in Configuration.__struct_fields__]
    for section in msgspec.structs.fields(Configuration):
        table = tables.get(section.name, {})
        if not isinstance(table, dict):
            faults.append(f"{section.name} must be a table")
            continue
        fields = {field.name: field for field in msgspec.structs.fields(section.type)}
        faults += [f"[{section.name}] {name} is no field here" for name in table if name not in fields]
        for name, field in fields.items():
            if name not in table:
                if field.required:
                    faults.append(f"[{section.name}] {name} is missing")
                continue
            try:
                msgspec.convert(table[name], field.type)
            except msgspec.ValidationError as error:
                faults.append(f"[{section.name}] {name}: {error}")
    faults += _faults_beyond_types(tables)
    return faults


def _faults_beyond_types(tables: dict[str, Any]) -> Iterator[str]:
    zone = _field(tables, "device", "time_zone")
    if isinstance(zone, str) and not time_zone.is_known(zone):
        yield f"[device] time_zone: {zone!r} is not known here; write an IANA name such as Europe/Berlin"
    cap = _field(tables, "fetch", "bytes_per_s_max")
    if isinstance(cap, int) and 0 < cap < BYTES_PER_S_LEAST:
        yield f"[fetch] bytes_per_s_max: {cap} is too little to fetch anything; at least {BYTES_PER_S_LEAST}, or 0 for no cap"


def _field(tables: dict[str, Any], section: str, name: str) -> Any:
    table = tables.get(section)
    return table.get(name) if isinstance(table, dict) else None
