"""The systemd units: well-formed, as closed as the README says, never giving up, and the device runs under their very filters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_gateway import control_groups, gateway, http_service
from holdfast_shared.wire.assignment import Rule
from holdfast_shared.wire.release import Trial
from support import confined, digits_models, installed_release
from support.device_bench import DeviceBench, Traffic
from support.device_surroundings import PIPELINE
from support.mosquitto import running_mosquitto
from support.services import need_program

DEPLOY = Path(__file__).parents[2] / "deploy"
AGENT, GATEWAY = DEPLOY / "holdfast-agent.service", DEPLOY / "holdfast-gateway.service"
SOCKET = DEPLOY / "holdfast-gateway.socket"
SERVICES = (AGENT, GATEWAY)


def setting(unit: Path, name: str) -> str:
    """The one value of a setting."""
    (value,) = confined.settings(unit, name)
    return value


def seconds(unit: Path, name: str) -> float:
    return float(setting(unit, name))


@pytest.fixture
def analyze() -> Path:
    return need_program("systemd-analyze", "systemd")


def test_systemd_finds_no_fault_in_them(analyze: Path, tmp_path: Path) -> None:
    """Not an unknown setting, not a warning. The programs are this environment's own, as the installer writes its prefix."""
    copies = []
    for unit in (*SERVICES, SOCKET):
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace("/opt/holdfast/bin", str(Path(sys.executable).parent)))
    command = [str(one) for one in (analyze, "verify", "--man=no", *copies)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_readme_states_how_exposed_they_are(analyze: Path, unit: Path) -> None:
    """`systemd-analyze security` of this systemd gives no more than the README says (another version weighs differently)."""
    stated = re.search(rf"`{re.escape(unit.name)}` \| ([0-9.]+)", (DEPLOY / "README.md").read_text())
    assert stated is not None
    threshold = round(float(stated.group(1)) * 10)
    command = [str(analyze), "security", "--offline=true", "--no-pager", f"--threshold={threshold}", str(unit)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout.splitlines()[-1]


def test_so_it_does_of_the_gateway_whose_workers_are_another_user(analyze: Path, tmp_path: Path) -> None:
    """The drop-in's settings after the unit's own, as systemd reads them; and systemd finds no fault in them."""
    stated = re.search(r"with `worker-user.conf` \| ([0-9.]+)", (DEPLOY / "README.md").read_text())
    assert stated is not None
    drop_in = (DEPLOY / "worker-user.conf").read_text().partition("[Service]\n")[2]
    unit = tmp_path / GATEWAY.name
    text = GATEWAY.read_text().replace("/opt/holdfast/bin", str(Path(sys.executable).parent))
    unit.write_text(text.replace("[Install]", f"{drop_in}\n[Install]"))
    (tmp_path / SOCKET.name).write_text(SOCKET.read_text())
    threshold = f"--threshold={round(float(stated.group(1)) * 10)}"
    for command in (["security", "--offline=true", threshold, str(unit)], ["verify", "--man=no", str(unit)]):
        ended = subprocess.run([str(analyze), "--no-pager", *command], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    calls = confined.allowed_by(unit)
    assert {"setreuid", "setregid", "setgroups"} <= calls, "what subprocess calls to become another user"
    assert not {"setreuid", "setgroups"} & confined.allowed_by(GATEWAY)


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_no_service_is_ever_given_up(unit: Path) -> None:
    """Started again whatever ended it, as often as it takes; nor does one that is killed for memory take the unit with it."""
    assert setting(unit, "StartLimitIntervalSec") == "0"
    assert setting(unit, "Restart") == "always"
    assert confined.settings(unit, "RestartPreventExitStatus") == []
    assert setting(unit, "OOMPolicy") == "continue"
    assert (setting(unit, "Type"), setting(unit, "NotifyAccess")) == ("notify", "main")
    assert seconds(unit, "WatchdogSec") >= 10


def test_nor_is_the_socket() -> None:
    """systemd closes one after 20 activations in two seconds by default; it is what applications wait at."""
    assert setting(SOCKET, "TriggerLimitIntervalSec") == "0"


def test_deadlines_of_the_units_are_longer_than_those_of_the_processes() -> None:
    """Else systemd would kill what is about to say that it is ready, or to end by itself."""
    ending_s = gateway.STOP_ANSWERS_S + 2 * gateway.STOP_WORKERS_S
    assert seconds(GATEWAY, "TimeoutStopSec") > ending_s + 5
    assert seconds(GATEWAY, "TimeoutStartSec") >= 2 * gateway.READY_WAIT_S
    assert setting(GATEWAY, "KillMode") == "mixed", "a SIGTERM to workers fails what they are answering"


def test_the_agents_watchdog_waits_for_a_disk_that_refuses() -> None:
    from holdfast_agent.edge import loop

    assert seconds(AGENT, "WatchdogSec") > 2 * loop.SAVE_TRIES * loop.SAVE_AGAIN_S


def test_stopping_one_leaves_the_others_sockets() -> None:
    """Both keep theirs in one runtime directory, which systemd removes at a stop unless it is told not to."""
    for unit in SERVICES:
        assert (setting(unit, "RuntimeDirectory"), setting(unit, "RuntimeDirectoryPreserve")) == ("holdfast", "yes")
        assert setting(unit, "StateDirectory") == "holdfast"
        assert setting(unit, "User") == "holdfast"


def test_the_gateway_depends_on_nothing_of_the_agent() -> None:
    assert "holdfast-agent" not in re.sub(r"#.*", "", GATEWAY.read_text()).replace("holdfast-agent.toml", "")


def test_the_socket_unit_is_what_the_gateway_takes() -> None:
    assert setting(SOCKET, "FileDescriptorName") == http_service.HANDED_OVER_AS
    tcp, unix = confined.settings(SOCKET, "ListenStream")
    assert tcp.startswith("127.0.0.1:")
    assert unix.startswith("/run/")


def test_who_may_reach_what() -> None:
    """The gateway and its models see no key; what is delegated is what limits a worker; applications come by their group."""
    key = tomllib.loads((DEPLOY / "agent.toml").read_text())["device"]["key"]
    assert setting(GATEWAY, "InaccessiblePaths") == f"-{key}"
    assert set(setting(GATEWAY, "Delegate").split()) >= set(control_groups.WANTED)
    assert setting(SOCKET, "SocketMode") == "0660"
    users = (DEPLOY / "holdfast.sysusers").read_text()
    assert f"\ng {setting(SOCKET, 'SocketGroup')} " in users
    assert f"\nu {setting(GATEWAY, 'User')} " in users


def test_when_memory_runs_out_the_gateway_goes_last_and_a_fetch_is_bounded() -> None:
    assert int(setting(GATEWAY, "OOMScoreAdjust")) < 0
    assert setting(AGENT, "MemoryMax").endswith("M")


def test_the_gateway_never_runs_without_its_socket_unit() -> None:
    """Else it would listen by itself, and refuse applications whenever it is started anew."""
    assert setting(GATEWAY, "Requires") == SOCKET.name
    assert SOCKET.name in setting(GATEWAY, "After")


def test_backoff_is_only_for_a_systemd_that_knows_it() -> None:
    """Debian 12's 252 warns of it at every reload, so it is a drop-in, and in no unit."""
    assert confined.settings(DEPLOY / "restart-backoff.conf", "RestartMaxDelaySec") == ["60"]
    assert all(confined.settings(unit, "RestartSteps") == [] for unit in SERVICES)


class ConfinedDevice(DeviceBench):
    """Each service under the system call filter of its unit."""

    def _start(self, name: str, module: str) -> subprocess.Popen[bytes]:
        unit = AGENT if name == "agent" else GATEWAY
        command = [sys.executable, confined.__file__, str(unit)]
        command += [sys.executable, "-m", module, "run", "--config", str(self.path)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self.processes[name]


@pytest.fixture
def device(analyze: Path, tmp_path: Path) -> Iterator[ConfinedDevice]:
    with running_mosquitto() as broker:
        bench = ConfinedDevice(tmp_path, broker)
        try:
            bench.start_gateway()
            bench.start_agent()
            yield bench
        finally:
            bench.close()


@pytest.mark.slow
def test_a_whole_device_works_under_the_filters_of_its_units(device: ConfinedDevice) -> None:
    """Fetch, worker, update, fallback from a release that goes bad, and the end: no call that they need is refused."""
    one = installed_release.publish(PIPELINE, "1.0.0", digits_models.trained(), trial=Trial(soak_s=0, requests_min=0))
    two = installed_release.publish(
        PIPELINE, "1.1.0", digits_models.trained(0.2), trial=Trial(soak_s=1, requests_min=1)
    )
    device.publish(one)
    device.publish(two)
    device.assign(Rule(mode="serve", release=one.ref))
    device.serves("1.0.0")
    with Traffic(device) as traffic:
        device.assign(Rule(mode="serve", release=two.ref))
        device.serves("1.1.0")
        device.eventually(lambda: device.saved().state == "idle" or None, "1.1.0 is committed")
        ended = subprocess.run(
            [sys.executable, "-m", "holdfast_agent", "rollback", "--config", str(device.path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        device.serves("1.0.0")
    assert traffic.failed == []
    status = [sys.executable, "-m", "holdfast_agent", "status", "--json", "--config", str(device.path)]
    said = json.loads(subprocess.run(status, capture_output=True, timeout=60).stdout)["gateway"]["isolation"]
    assert said["applied"].keys() == {"priority", "memory", "programs", "network", "system", "files"}
    assert device.terminate("agent") == 0
    assert device.terminate("gateway") == 0
    log = (device.folder / "gateway.log").read_text() + (device.folder / "agent.log").read_text()
    assert "not permitted" not in log


@pytest.mark.slow
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_filter_refuses_what_no_device_needs(analyze: Path, unit: Path) -> None:
    """So the test above proves something: the same filter is really in force."""
    calls = "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
    calls += (
        "print(c.mount(b'x', b'/mnt', b'tmpfs', 0, None), ctypes.get_errno(), c.ptrace(0, 0, 0, 0), ctypes.get_errno())"
    )
    command = [sys.executable, confined.__file__, str(unit), sys.executable, "-c", calls]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "-1 1 -1 1\n", ended.stderr
