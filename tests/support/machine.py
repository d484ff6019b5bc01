"""A device as a whole machine: Debian in an emulator, with its own kernel, systemd as process 1, and a cord that can be pulled.

It is emulated in software, some ten times slower than this machine: deadlines here are long. What it needs (qemu, debootstrap,
root) and what it makes (`.machine/`) are told in `tests/machine/README.md`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from demonstration.processes import free_port
from support.services import need_program

CHECKOUT: Final = Path(__file__).parents[2]
MADE: Final = CHECKOUT / ".machine"
# How the host's loopback is called inside (qemu's user network).
HOST: Final = "10.0.2.2"
WITHIN_S: Final = 300.0
BOOT_S: Final = 240.0
LOOK_EVERY_S: Final = 0.5
_SUITE: Final = "bookworm"
_PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "kmod", "iproute2", "procps"),
    *("python3", "python3-venv", "openssh-server", "curl"),
)
_PYTHON: Final = "311"
_DISK_BYTES: Final = 6 * 1024**3
_MEMORY_MB: Final = 2048
_NETWORK: Final = "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"


class Machine:
    """`boot` and `cut_power` as often as needed; its disk outlives both."""

    def __init__(self, folder: Path) -> None:
        base = _base()
        self._folder, self._base = folder, base
        self._disk = folder / "disk.qcow2"
        backing = ["-b", str(base / "disk.img"), "-F", "raw"]
        _ran("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._disk))
        self._process: subprocess.Popen[bytes] | None = None
        self._ssh: list[str] = []

    def boot(self) -> None:
        """Returns when it can be spoken to; its services may be starting still."""
        assert self._process is None
        port = free_port()
        kernel = "root=/dev/vda rw console=ttyS0 quiet panic=-1"
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(_MEMORY_MB)),
            *("-nographic", "-no-reboot", "-kernel", self._base / "vmlinuz", "-initrd", self._base / "initrd"),
            *("-append", kernel, "-drive", f"file={self._disk},if=virtio,cache=writeback"),
            *("-device", "virtio-net-pci,netdev=n", "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22"),
        ]
        with (self._folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        options = ["StrictHostKeyChecking=no", "BatchMode=yes", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        chosen = [f"-o{option}" for option in (*options, "ConnectTimeout=30")]
        self._ssh = ["ssh", f"-p{port}", f"-i{self._base / 'key'}", *chosen, "root@127.0.0.1"]
        deadline = time.monotonic() + BOOT_S
        while self._try("true", within_s=60).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                said = (self._folder / "console.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"it did not boot:\n{said}")
            time.sleep(LOOK_EVERY_S)  # whether it can be spoken to is seen by speaking to it

    def cut_power(self) -> None:
        """What its kernel had not written to the disk is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WITHIN_S)
        self._process = None

    def shut_down(self) -> None:
        """As its user would."""
        assert self._process is not None
        self._try("systemctl poweroff", within_s=60)
        self._process.wait(WITHIN_S)
        self._process = None

    def run(self, command: str, *, put: bytes = b"", within_s: float = WITHIN_S) -> str:
        """What it printed, as root. `put` is its standard input. Raises AssertionError when it ends with anything but 0."""
        ended = self._try(command, put=put, within_s=within_s)
        assert ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout.decode()}\n{ended.stderr.decode()}"
        return ended.stdout.decode()

    def fails(self, command: str) -> str:
        """The same of one that must not end with 0."""
        ended = self._try(command, within_s=WITHIN_S)
        assert ended.returncode, f"{command} ended with 0: {ended.stdout.decode()}"
        return (ended.stdout + ended.stderr).decode()

    def put(self, content: bytes, path: str) -> None:
        self.run(f"cat > {path}", put=content)

    def journal(self) -> str:
        return self._try("journalctl --no-pager -n 60 -o short-monotonic", within_s=60).stdout.decode()

    def _try(self, command: str, *, put: bytes = b"", within_s: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run([*self._ssh, command], input=put, capture_output=True, timeout=within_s)
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 255, error.stdout or b"", b"it took too long")


@contextlib.contextmanager
def running_machine(folder: Path) -> Iterator[Machine]:
    """Booted, with nothing of ours on it."""
    machine = Machine(folder)
    try:
        machine.boot()
        yield machine
    finally:
        if machine._process is not None:
            machine.cut_power()


def wheels() -> Path:
    """What the agent depends on, as its lock says, for a machine without a network."""
    lock = CHECKOUT / f"scripts/locks/agent-onnx-py{_PYTHON}.txt"
    folder = MADE / f"wheels-{_digest(lock.read_bytes())}"
    if not folder.exists():
        new = folder.with_suffix(".new")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        only = ["--require-hashes", "--only-binary=:all:", f"--python-version={_PYTHON}"]
        _ran(*pip, *only, f"--requirement={lock}", f"--dest={new}")
        new.rename(folder)
    return folder


def own_wheel(folder: Path) -> Path:
    """This checkout's, as it is."""
    _ran(str(Path(sys.executable).with_name("hatchling")), "build", "-t", "wheel", "-d", str(folder), cwd=CHECKOUT)
    (wheel,) = folder.glob("holdfast-*.whl")
    return wheel


def _base() -> Path:
    """A disk with Debian on it, its kernel, and a key for root: made once, some two minutes."""
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("debootstrap", "debootstrap"),
        ("mke2fs", "e2fsprogs"),
        ("ssh-keygen", "openssh-client"),
    ):
        need_program(program, package)
    folder = MADE / f"base-{_digest(repr((_SUITE, _PACKAGES, _NETWORK, _DISK_BYTES)).encode())}"
    if folder.exists():
        return folder
    assert os.geteuid() == 0, "debootstrap needs root"
    new, root = folder.with_suffix(".new"), folder.with_suffix(".new") / "root"
    shutil.rmtree(new, ignore_errors=True)
    root.mkdir(parents=True)
    site = _ran("apt-get", "indextargets", "--format", "$(SITE)").split()[0]
    _ran("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(root), site)
    _ran("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(new / "key"))
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copy(new / "key.pub", root / "root/.ssh/authorized_keys")
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw 0 1\n")
    (root / "etc/hostname").write_text("camera-7\n")
    (root / "etc/systemd/network/80-dhcp.network").write_text(_NETWORK)
    _ran("systemctl", f"--root={root}", "enable", "systemd-networkd.service", "ssh.service")
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), new / "vmlinuz")
    shutil.copy(next((root / "boot").glob("initrd.img-*")), new / "initrd")
    _ran("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(new / "disk.img"), str(_DISK_BYTES // 1024))
    shutil.rmtree(root)
    new.rename(folder)
    return folder


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _ran(*command: str, cwd: Path | None = None) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert ended.returncode == 0, f"{command[0]}: {ended.stdout}{ended.stderr}"
    return ended.stdout
