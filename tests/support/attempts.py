"""What a model that is out for harm would try, and what it would see: `python -m support.attempts OFF NAME…` confines itself as
a worker does, less what is OFF (`a,b`), tries, and prints `done` or the error of each. A process of its own: no test may do this.
ATTEMPTS_MISSING names system calls that the machine is to refuse; ATTEMPTS_EARLY what is tried when it is half confined.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast_worker.isolation.confine import begin
from holdfast_worker.isolation.plan import Asked
from support import confined

MEMORY_BYTES_MAX: Final = 128 * 1024**2
TASKS_MAX: Final = 24
LARGE_BYTES: Final = 192 * 1024**2
MANY_THREADS: Final = 64
# What a worker's gateway holds and a model may not see.
SECRET: Final = Path(os.environ.get("ATTEMPTS_SECRET", "/nonexistent"))
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*[ctypes.c_long(one) for one in arguments]) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _allocate() -> None:
    bytearray(LARGE_BYTES)


def _share_memory() -> None:
    mmap.mmap(-1, LARGE_BYTES).close()


def _name_memory() -> None:
    os.close(os.memfd_create("large"))


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _run_a_program() -> None:
    subprocess.run(["/bin/true"], check=True)


def _ask_the_network() -> None:
    socket.socket(socket.AF_INET).close()


def _reach_the_network() -> None:
    """A socket is had; a datagram's way to this machine's own address is not, where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("127.0.0.1", 9))


def _ask_this_device() -> None:
    socket.socket(socket.AF_UNIX).close()


def _make_a_ring() -> None:
    """Its number is the same on every machine. A null pointer is a fault, which is no refusal."""
    try:
        _call("syscall", 425, 8, 0)
    except OSError as error:
        if error.errno != 14:  # EFAULT
            raise


def _signal_the_parent() -> None:
    os.kill(os.getppid(), 0)


def _limit_the_parent() -> None:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE))


def _change_namespace() -> None:
    _call("unshare", 0)


def _read_a_secret() -> None:
    SECRET.read_bytes()


def _write_a_file() -> None:
    (SECRET.parent / "left-behind").write_bytes(b"x")  # a model's business, not durable work


def _delete_a_file() -> None:
    SECRET.unlink()


def _list_a_folder() -> None:
    os.listdir(SECRET.parent)  # noqa: PTH208 - the very call


def _start_threads() -> None:
    """As many as bear a name for a moment; small stacks, so that memory is not what runs out."""
    threading.stack_size(64 * 1024)
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(MANY_THREADS)]
    try:
        for thread in threads:
            thread.start()
    finally:
        done.set()


def _dump_core() -> None:
    """Not tried: whether a crash would leave a core is a limit's value."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        raise OSError(1, "no core would be left")


def _use_what_a_runtime_needs() -> None:
    """A thread, a private allocation, late imports, the clock, a signal to itself, /dev/null."""
    thread = threading.Thread(target=bytearray, args=(1024**2,))
    thread.start()
    thread.join()
    import importlib

    importlib.import_module("decimal")
    importlib.import_module("xml.dom.minidom")
    time.sleep(0)
    os.kill(os.getpid(), 0)
    signal.raise_signal(signal.SIGCONT)
    Path(os.devnull).write_bytes(b"x")
    Path("/proc/cpuinfo").read_bytes()
    os.urandom(8)


ATTEMPTS: Final[dict[str, Callable[[], None]]] = {
    "allocate": _allocate,
    "share-memory": _share_memory,
    "name-memory": _name_memory,
    "fork": _fork,
    "run-a-program": _run_a_program,
    "ask-the-network": _ask_the_network,
    "reach-the-network": _reach_the_network,
    "ask-this-device": _ask_this_device,
    "make-a-ring": _make_a_ring,
    "signal-the-parent": _signal_the_parent,
    "limit-the-parent": _limit_the_parent,
    "change-namespace": _change_namespace,
    "read-a-secret": _read_a_secret,
    "write-a-file": _write_a_file,
    "delete-a-file": _delete_a_file,
    "list-a-folder": _list_a_folder,
    "start-threads": _start_threads,
    "dump-core": _dump_core,
    "use-what-a-runtime-needs": _use_what_a_runtime_needs,
}


def main() -> None:
    off, *names = sys.argv[1:]
    missing = os.environ.get("ATTEMPTS_MISSING", "")
    if missing:
        confined.refuse(missing.split(","))
    isolated = {"user": "nobody"} if os.geteuid() else {}
    wanted = frozenset(off.split(","))
    begun = begin(Asked(off=wanted, isolated=isolated), tasks_max=TASKS_MAX, reads=[Path(os.environ["ATTEMPTS_BLOBS"])])
    early = {name: _came_of(ATTEMPTS[name]) for name in os.environ.get("ATTEMPTS_EARLY", "").split(",") if name}
    told = begun.finish(memory_bytes_max=MEMORY_BYTES_MAX)
    came = {name: _came_of(ATTEMPTS[name]) for name in names}
    sys.stdout.write(json.dumps({"early": early, "came": came, "applied": told.applied, "degraded": told.degraded}))
    sys.stdout.flush()
    os._exit(0)


def _came_of(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (OSError, MemoryError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    main()
