"""`deploy/install` and `deploy/uninstall`, really run, into a folder: twice, over what is there, wrongly, and back again."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from holdfast_agent.edge import configuration
from support import confined, wheels
from support.services import need_program

ROOT: Final = Path(__file__).parents[2]
INSTALL, UNINSTALL = ROOT / "deploy" / "install", ROOT / "deploy" / "uninstall"
# Large, and installed like the rest.
RUNTIME: Final = ("flatbuffers", "numpy", "onnxruntime", "protobuf")
UNITS: Final = ("holdfast-agent.service", "holdfast-gateway.service", "holdfast-gateway.socket")


def run(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(one) for one in (script, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this checkout, made without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [str(Path(sys.executable).with_name("hatchling")), "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def untouched(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with it, of which tests get copies: installing takes ten seconds of processor."""
    need_program("systemd-sysusers", "systemd")
    root = tmp_path_factory.mktemp("root")
    ended = install(root, wheel)
    assert ended.returncode == 0, ended.stderr
    return root


@pytest.fixture(scope="module")
def installed(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by tests that leave the program as it is."""
    return copy_of(untouched, tmp_path_factory.mktemp("copy"))


@pytest.fixture
def installed_fresh(untouched: Path, tmp_path: Path) -> Path:
    return copy_of(untouched, tmp_path)


def copy_of(root: Path, folder: Path) -> Path:
    """With owners and modes. What was installed names no folder that it was made in, as a test asserts."""
    subprocess.run(["cp", "-a", f"{root}/.", folder], check=True, timeout=60)
    return folder


def install(root: Path, wheel: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Dependencies are this environment's own: what pip fetches is pip's, and needs a network."""
    common = ("--root", str(root), "--python", sys.executable, "--wheel", str(wheel), "--system-packages")
    return run(INSTALL, *common, *more)


def checkout_of(folder: Path, of_wheels: Path) -> Path:
    """A checkout whose lock is of wheels that can be made here: what the agent needs, by hash, without what runs models.

    They are this environment's own packages, packed again into `of_wheels`: those of the real lock would have to be fetched.
    """
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    name = f"agent-onnx-py{sys.version_info.major}{sys.version_info.minor}.txt"
    lock = folder / "scripts" / "locks" / name
    lock.parent.mkdir(parents=True)
    of_wheels.mkdir()
    lines = []
    for package in re.findall(r"^([a-z][\w-]*)==", (ROOT / "scripts" / "locks" / name).read_text(), re.MULTILINE):
        if package not in RUNTIME:
            packed = wheels.packed(package)
            (of_wheels / packed.filename).write_bytes(packed.content)
            version = importlib.metadata.version(package)
            lines.append(f"{package}=={version} --hash={packed.digest}\n")
    lock.write_text("".join(lines))
    return folder


def tree(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Mode, owner and content of every file that is not the program's own."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_uid,
            path.lstat().st_gid,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
        if "opt/" not in str(path.relative_to(root)) and path.name != ".pwd.lock"
    }


@pytest.mark.slow
def test_it_is_all_there_and_the_commands_run(installed: Path) -> None:
    """By the interpreter that was installed, with this environment's dependencies on its path."""
    bin_ = installed / "opt/holdfast/bin"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    for command in ("holdfast-agent", "holdfast-gateway"):
        assert (bin_ / command).read_text().splitlines()[0] == "#!/opt/holdfast/bin/python"
        ended = subprocess.run(
            [bin_ / "python", bin_ / command, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PYTHONPATH": os.pathsep.join(packages)},
        )
        assert ended.stdout == f"{command} 0.1.0\n", ended.stderr
    assert not (bin_ / "holdfast-server").exists()
    for unit in UNITS:
        assert "/opt/holdfast/" in (installed / "etc/systemd/system" / unit).read_text() or unit.endswith(".socket")
    assert (installed / "etc/systemd/system/multi-user.target.wants/holdfast-agent.service").is_symlink()
    assert (installed / "etc/systemd/system/sockets.target.wants/holdfast-gateway.socket").is_symlink()
    for file in (*bin_.glob("*"), installed / "opt/holdfast/pyvenv.cfg"):
        if file.is_file() and not file.is_symlink():
            assert str(installed).encode() not in file.read_bytes(), f"{file.name} names where it was made"


@pytest.mark.slow
def test_its_dependencies_come_by_hash_from_a_folder_of_wheels(wheel: Path, tmp_path: Path) -> None:
    """Without a network; and a wheel that is not the lock's stops it before anything of the old installation is touched."""
    need_program("systemd-sysusers", "systemd")
    of_wheels, root = tmp_path / "wheels", tmp_path / "root"
    script = checkout_of(tmp_path / "checkout", of_wheels) / "deploy" / "install"
    root.mkdir()
    words = ("--root", root, "--python", sys.executable, "--wheel", wheel, "--wheels", of_wheels)
    ended = run(script, *words)
    assert ended.returncode == 0, ended.stderr
    bin_ = root / "opt/holdfast/bin"

    def runs() -> bool:
        asked = [str(bin_ / "python"), "-I", str(bin_ / "holdfast-agent"), "--version"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout == "holdfast-agent 0.1.0\n"

    assert runs(), "with nothing but what was installed"
    assert not (root / "opt/holdfast/pyvenv.cfg").read_text().count("include-system-site-packages = true")
    (other,) = of_wheels.glob("msgspec-*")
    other.write_bytes(other.read_bytes() + b"\0")
    ended = run(script, *words)
    assert ended.returncode != 0
    assert "is every wheel of" in ended.stderr
    assert runs()
    assert not (root / "opt/holdfast.new").exists()


@pytest.mark.slow
def test_its_users_own_what_they_must_and_nobody_else_may_look(installed: Path) -> None:
    passwd, group = ((installed / "etc" / name).read_text() for name in ("passwd", "group"))
    (user,) = [line.split(":") for line in passwd.splitlines() if line.startswith("holdfast:")]
    assert user[6].endswith("nologin")
    assert "holdfast-apps:" in group
    state, folder, sample = (
        installed / path for path in ("var/lib/holdfast", "etc/holdfast", "etc/holdfast/agent.toml")
    )
    assert [path.stat().st_mode & 0o777 for path in (state, folder, sample)] == [0o750, 0o750, 0o640]
    if os.geteuid() == 0:
        assert state.stat().st_uid == int(user[2])
        assert [path.stat().st_uid for path in (folder, sample)] == [0, 0], "the services cannot change it"
        assert {path.stat().st_gid for path in (folder, sample)} == {int(user[3])}


@pytest.mark.slow
def test_again_changes_nothing_and_never_configuration_or_keys(installed: Path, wheel: Path) -> None:
    kept = {"agent.toml": "# ours\n", "device.key": "secret\n", "membership.json": "{}\n", "authorities.json": "{}\n"}
    for name, text in kept.items():
        (installed / "etc/holdfast" / name).write_text(text)
    (installed / "var/lib/holdfast/record.a").write_text("state\n")
    before = tree(installed)
    assert install(installed, wheel).returncode == 0
    assert tree(installed) == before


@pytest.mark.slow
def test_a_failed_run_leaves_what_was_installed(installed: Path, tmp_path: Path) -> None:
    """Not half of one version and half of another."""
    before = (installed / "opt/holdfast/bin/holdfast-agent").stat().st_ino
    broken = tmp_path / "holdfast-9.9.9-py3-none-any.whl"
    broken.write_bytes(b"no wheel")
    ended = install(installed, broken)
    assert ended.returncode == 2
    assert "could not install" in ended.stderr
    assert (installed / "opt/holdfast/bin/holdfast-agent").stat().st_ino == before
    assert [path.name for path in (installed / "opt").iterdir()] == ["holdfast"]


@pytest.mark.slow
def test_locked_dependencies_that_are_not_there_are_one_clear_error(tmp_path: Path, wheel: Path) -> None:
    """Without a network, from a folder of wheels that lacks them: nothing is installed."""
    empty = tmp_path / "wheels"
    empty.mkdir()
    (tmp_path / "root").mkdir()
    common = ("--root", tmp_path / "root", "--python", sys.executable, "--wheel", wheel, "--wheels", empty)
    ended = run(INSTALL, *common)
    assert ended.returncode == 2
    assert f"is every wheel of {ROOT}/scripts/locks/agent-onnx-py" in ended.stderr
    assert list((tmp_path / "root" / "opt").iterdir()) == []


@pytest.mark.slow
def test_another_prefix_is_in_the_units_and_no_enable_enables_nothing(tmp_path: Path, wheel: Path) -> None:
    ended = install(tmp_path, wheel, "--prefix", "/usr/lib/holdfast", "--no-enable")
    assert ended.returncode == 0, ended.stderr
    agent = (tmp_path / "etc/systemd/system/holdfast-agent.service").read_text()
    assert "ExecStart=/usr/lib/holdfast/bin/holdfast-agent run" in agent
    assert list((tmp_path / "etc/systemd/system").glob("*.wants")) == []


@pytest.mark.slow
def test_the_installed_configuration_fits_the_units(installed_fresh: Path) -> None:
    """It loads; state and sockets are where the units make room for them; the key is where the gateway cannot see it."""
    found = configuration.load(installed_fresh / "etc/holdfast/agent.toml")
    units = installed_fresh / "etc/systemd/system"
    for unit in ("holdfast-agent.service", "holdfast-gateway.service"):
        assert f"/var/lib/{confined.settings(units / unit, 'StateDirectory')[0]}" == found.device.state
        assert f"/run/{confined.settings(units / unit, 'RuntimeDirectory')[0]}" == found.device.run
    assert confined.settings(units / "holdfast-gateway.service", "InaccessiblePaths") == [f"-{found.device.key}"]
    assert confined.settings(units / "holdfast-gateway.socket", "ListenStream")[0] == found.gateway.listen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefix", "/"], "name a folder of its own"),
        (["--prefix", "relative/path"], "name a folder of its own"),
        (["--prefix", "/opt/a b"], "plain letters"),
        (["--prefix"], "--prefix needs a value"),
        (["--frobnicate"], "--frobnicate is no option here"),
        (["--root", "/no/such/folder"], "there is no such folder"),
        (["--wheels", "x", "--system-packages"], "exclude each other"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_happens(arguments: list[str], said: str) -> None:
    ended = run(INSTALL, *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_folder_that_is_not_ours_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "opt/holdfast/theirs"
    theirs.mkdir(parents=True)
    for script in (INSTALL, UNINSTALL):
        ended = run(script, "--root", tmp_path)
        assert ended.returncode == 2, script
        assert "deploy/install" in ended.stderr
    assert theirs.is_dir()


@pytest.mark.slow
def test_uninstall_keeps_what_cannot_be_made_again_and_purge_does_not(installed_fresh: Path) -> None:
    (installed_fresh / "etc/holdfast/device.key").write_text("secret\n")
    (installed_fresh / "var/lib/holdfast/record.a").write_text("state\n")
    ended = run(UNINSTALL, "--root", installed_fresh)
    assert ended.returncode == 0, ended.stderr
    left = {name for name in tree(installed_fresh) if "holdfast" in name}
    assert left == {
        "etc/holdfast",
        "etc/holdfast/agent.toml",
        "etc/holdfast/device.key",
        "var/lib/holdfast",
        "var/lib/holdfast/record.a",
    }
    assert not (installed_fresh / "opt/holdfast").exists()
    assert run(UNINSTALL, "--root", installed_fresh).returncode == 0, "again is no error"
    assert run(UNINSTALL, "--root", installed_fresh, "--purge").returncode == 0
    assert {name for name in tree(installed_fresh) if "holdfast" in name} == set()


@pytest.mark.parametrize("script", [INSTALL, UNINSTALL], ids=lambda script: script.name)
def test_help_says_every_option(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    said = run(script, "--help").stdout
    for option in set(re.findall(r"^    (--[a-z-]+)", script.read_text(), re.MULTILINE)) - {"--help"}:
        assert option in said


@pytest.mark.parametrize("python", ["311", "312", "313"])
def test_a_device_with_both_runtimes_has_one_lock_of_both(python: str) -> None:
    """Each package at one version, and nothing that neither needs alone."""

    def pinned(runtime: str) -> set[str]:
        text = (ROOT / "scripts" / "locks" / f"agent-{runtime}-py{python}.txt").read_text()
        return set(re.findall(r"^[a-z][\w-]*==", text, re.MULTILINE))

    assert pinned("onnx-tflite") == pinned("onnx") | pinned("tflite")
