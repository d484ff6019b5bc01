"""Peers in processes of their own: the floor, and MLServer where `.venv-peers` is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
START_S: Final = 60.0
STOP_S: Final = 10.0


@contextlib.contextmanager
def floor(model: bytes, folder: Path) -> Iterator[tuple[str, int]]:
    """One process of asyncio + httptools; its address."""
    path = folder / "floor.onnx"
    path.write_bytes(model)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-m", "benchmark.floor", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def mlserver(model: bytes, folder: Path, *, parallel_workers: int) -> Iterator[tuple[str, int]]:
    """MLServer with that many workers beside its own process (its default is one); its address."""
    home = folder / f"mlserver-{parallel_workers}"
    home.mkdir()
    ports = _free_ports(3)
    (home / "model.onnx").write_bytes(model)
    settings = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": parallel_workers,
        "debug": False,
    }
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "digits",
                "implementation": "mlserver_runtime.OnnxModel",
                "parameters": {"uri": str(home / "model.onnx")},
            }
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [str(PEERS_PYTHON), "-m", "mlserver.cli.main", "start", str(home)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home)
    try:
        _until_it_answers(process, ports[0], home / "log")
        yield "127.0.0.1", ports[0]
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    due = time.monotonic() + START_S
    question = b"GET /v2/models/digits/ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    while time.monotonic() < due and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(question)
            if connection.recv(100).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.1)  # between two looks, until the deadline
    raise RuntimeError(f"MLServer does not answer: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
