"""Sets the stage: a broker, a server, six real devices and the light ones, all on free ports of loopback, in one folder."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from demonstration import digits, fleet
from demonstration.digits import Data
from demonstration.fleet import Device, Provisioned
from demonstration.narration import Narration
from demonstration.operator_command import Operator
from demonstration.processes import Missed, Processes, free_port, installed, wait_for
from demonstration.story import Cast, start_agent
from demonstration.traffic import Application
from holdfast_agent.edge.layout import StateFolder
from holdfast_cli.failures import Unreachable
from holdfast_cli.server import Server

START_S: Final = 60.0
# Every process starts on the same two cores.
FLEET_START_S: Final = 120.0
HEALTH_S: Final = 3.0
LIGHT_PROCESS: Final = "light-devices"
SERVER_DATA: Final = "server"
# The machine's own daemons lie where not every PATH looks.
_SYSTEM_PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])


def build(folder: Path, processes: Processes, narration: Narration, *, light: int) -> Cast:
    """Everything up, every device seen by the server, and an application waiting at each gateway."""
    narration.act("Setting the stage")
    data = digits.load()
    releases = digits.write_releases(data, folder / "releases")
    narration.good(f"trained four releases on {len(data.training.labels)} scanned digits")
    provisioned = fleet.provision(folder, fleet.devices(light))
    narration.good(f"made keys, authorities.json and memberships for {len(provisioned.devices)} devices")
    broker = start_broker(folder, processes)
    address = start_server(folder, provisioned, processes, broker)
    narration.good(f"broker {broker}; server and page {address}")
    server = Server(address)
    fleet.enrol(provisioned, server)
    applications = _start_devices(provisioned, data, processes, address, broker)
    _wait_for_all(provisioned, processes, server, narration)
    cast = Cast(
        provisioned=provisioned,
        processes=processes,
        operator=Operator(provisioned, address, narration.command),
        server=server,
        broker=broker,
        releases=releases,
        applications=applications,
        narration=narration,
    )
    for application in applications:
        application.start()
    return cast


def server_database(folder: Path) -> Path:
    """The embedded database's file."""
    return next((folder / SERVER_DATA).glob("*.db"))


def start_broker(folder: Path, processes: Processes, *, port: int | None = None) -> str:
    """A broker on that port of loopback, or on a free one; its URL once it listens."""
    program = shutil.which("mosquitto", path=_SYSTEM_PATH)
    if program is None:
        raise Missed("mosquitto is missing; run: sudo apt-get install -y --no-install-recommends mosquitto")
    port = port or free_port()
    configuration = folder / "mosquitto.conf"
    # As its own user: changing it, which mosquitto else does as root, would clear the death signal (prctl(2)).
    configuration.write_text(
        f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        "max_queued_messages 10000\n"
    )
    processes.start("mosquitto", [program, "-c", configuration])

    def listens() -> bool:
        processes.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_for("the broker listens", listens, within_s=START_S)
    return f"mqtt://127.0.0.1:{port}"


def start_server(
    folder: Path,
    provisioned: Provisioned,
    processes: Processes,
    broker: str,
    *,
    listen: str = "127.0.0.1:0",
    policy: Sequence[str] = (),
) -> str:
    """The server; its URL once it is connected to the broker. It goes on with what is in its data folder.

    `policy`: more words of its command line.
    """
    data = folder / SERVER_DATA
    (data / "server.json").unlink(missing_ok=True)  # of one that was killed
    processes.start(
        "server",
        [
            installed("holdfast-server"), "run",
            "--data", data,
            "--authorities", provisioned.authorities,
            "--director-key", provisioned.key("director"),
            "--listen", listen,
            "--mqtt", broker,
            *policy,
        ],
    )  # fmt: skip
    found: Any = wait_for("the server listens", lambda: _written(processes, data / "server.json"), within_s=START_S)
    address = str(found["http"])

    def connected() -> bool:
        with contextlib.suppress(Unreachable):
            return bool(Server(address).get("status")["broker_connected"])
        return False

    wait_for("the server is connected to the broker", connected, within_s=START_S)
    return address


def _start_devices(
    provisioned: Provisioned, data: Data, processes: Processes, server: str, broker: str
) -> list[Application]:
    real = [device for device in provisioned.devices if device.kind == "real"]
    for device in real:
        configuration = fleet.configure(provisioned, device, server=server, broker=broker, health_s=HEALTH_S)
        processes.start(f"gateway-{device.id}", [installed("holdfast-gateway"), "run", "--config", configuration])
        start_agent(processes, provisioned, device)
    processes.start(
        LIGHT_PROCESS,
        [sys.executable, "-m", "demonstration.light", provisioned.folder, server, broker, str(HEALTH_S)],
        environment={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return [
        Application(device.id, gateway_address(provisioned, device, processes), data.live, seed=index)
        for index, device in enumerate(real)
    ]


def gateway_address(provisioned: Provisioned, device: Device, processes: Processes) -> str:
    """Where a real device's applications ask, once its gateway listens."""
    run = provisioned.folder / "run" / device.id
    where = StateFolder(provisioned.state(device.id), run).gateway_addresses
    found: Any = wait_for(f"the gateway of {device.id} listens", lambda: _written(processes, where), within_s=START_S)
    return str(found["http"])


def _wait_for_all(provisioned: Provisioned, processes: Processes, server: Server, narration: Narration) -> None:
    names = {device.id for device in provisioned.devices}

    def all_seen() -> bool:
        processes.check()
        found = server.get("devices", limit=len(names))["devices"]
        seen = {one["device"] for one in found if one["last_seen_at"]}
        narration.moving(f"{len(seen)} of {len(names)} devices have reported")
        return seen == names

    wait_for("every device's first signed report", all_seen, within_s=FLEET_START_S, every_s=0.5)
    narration.good(f"all {len(names)} devices have sent a signed report")


def _written(processes: Processes, file: Path) -> Any:
    processes.check()
    return json.loads(file.read_bytes()) if file.exists() else None
