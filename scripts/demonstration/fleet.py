"""Who is in the demo: three regions, six real devices, about 300 light ones, four people and a director. Keys are made anew
for every run and lie in its folder alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_cli.server import Server
from holdfast_shared import durable, signing, strict_json
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.identifiers import DeviceId
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.membership import TYPE as MEMBERSHIP_TYPE
from holdfast_shared.wire.membership import Membership

NAME: Final = "demo"
REGIONS: Final = ("eu-west", "us-east", "ap-south")
# Mira publishes; Anna operates; Ben approves what Anna asks for; Otto enrols devices.
PEOPLE: Final = ("mira", "anna", "ben", "otto")
REAL_A_REGION: Final = 2


class Device(NamedTuple):
    """One device; `kind` (real or light) is also a label, by which evidence is counted."""

    id: DeviceId
    region: str
    kind: str
    canary: bool

    @property
    def labels(self) -> dict[str, str]:
        return {"kind": self.kind, "site": f"site-{sum(self.id.encode()) % 4}"} | (
            {"ring": "canary"} if self.canary else {}
        )


def devices(light: int) -> list[Device]:
    """All devices, `light` of them light, spread evenly over the regions."""
    found = []
    for index, region in enumerate(REGIONS):
        found += [
            # The ring that gets everything first has real devices alone: a light one loads a release in no time, and on a slow
            # machine would have it halted before a real one has answered with it.
            Device(DeviceId(f"camera-{region}-{number}"), region, "real", canary=number == 1)
            for number in range(1, REAL_A_REGION + 1)
        ]
        here = light // len(REGIONS) + (index < light % len(REGIONS))
        found += [
            Device(DeviceId(f"light-{region}-{number:03}"), region, "light", canary=False)
            for number in range(1, here + 1)
        ]
    return found


class Provisioned(NamedTuple):
    """What lies in the demo's folder for its people, its server and its devices."""

    folder: Path
    authorities: Path
    devices: Sequence[Device]

    def key(self, name: str) -> Path:
        """A person's, the director's or a device's private key."""
        return self.folder / "keys" / f"{name}.pem"

    def membership(self, device: str) -> Path:
        return self.folder / "memberships" / f"{device}.json"

    def state(self, device: str) -> Path:
        return self.folder / "devices" / device

    def configuration(self, device: str) -> Path:
        return self.state(device) / "agent.toml"


def provision(folder: Path, found: Sequence[Device]) -> Provisioned:
    """Make every key, `authorities.json` and every membership."""
    made = Provisioned(folder, folder / "authorities.json", found)
    for name in ("keys", "memberships", "devices"):
        durable.make_folder(folder / name)
    people = {name: _new_key(made.key(name)) for name in (*PEOPLE, "director")}
    durable.write_file(made.authorities, strict_json.encode(_authorities(people)))
    now = time.time_ns() // 1000
    for device in found:
        membership = Membership(
            fleet=NAME,
            device=device.id,
            region=device.region,
            counter=1,
            public_key=_new_key(made.key(device.id)).public.to_text(),
            issued_at=now,
            labels=device.labels,
        )
        signed = signing.sign(strict_json.encode(membership), MEMBERSHIP_TYPE, [people["otto"]])
        made.membership(device.id).write_bytes(signed)
    return made


def enrol(made: Provisioned, server: Server) -> None:
    """Register every membership with the server, as `holdfast device enrol` does."""
    for device in made.devices:
        server.post("memberships", body=made.membership(device.id).read_bytes())


def configure(made: Provisioned, device: Device, *, server: str, broker: str, health_s: float) -> Path:
    """Write a real device's one configuration file."""
    state = made.state(device.id)
    durable.make_folder(state)
    tables: dict[str, Mapping[str, object]] = {
        "device": {
            "id": device.id,
            "fleet": NAME,
            "state": str(state),
            "run": str(made.folder / "run" / device.id),
            "key": str(made.key(device.id)),
            "membership": str(made.membership(device.id)),
            "authorities": str(made.authorities),
        },
        "server": {"url": server, "poll_s": 20.0},
        "broker": {"url": broker, "keepalive_s": 15},
        "agent": {"health_s": health_s},
        "gateway": {"listen": "127.0.0.1:0"},
    }
    path = made.configuration(device.id)
    path.write_text("\n".join(_table(name, values) for name, values in tables.items()))
    return path


def _table(name: str, values: Mapping[str, object]) -> str:
    """TOML of strings and numbers: both are written as in JSON."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def _new_key(path: Path) -> PrivateKey:
    key = PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.to_pem())
    return key


def _authorities(people: Mapping[str, PrivateKey]) -> Authorities:
    public = {name: key.public.to_text() for name, key in people.items()}

    def holders(*names: str) -> tuple[Holder, ...]:
        return tuple(Holder(name=name, public_key=public[name]) for name in names)

    return Authorities(
        fleet=NAME,
        version=1,
        publishers=(Publisher(name="mira", public_key=public["mira"]),),
        directors=(Director(name="director", public_key=public["director"], epoch=1),),
        enrolment=holders("otto"),
        operators=holders("anna"),
        approvers=holders("anna", "ben"),
    )
