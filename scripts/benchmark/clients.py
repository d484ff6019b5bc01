"""Who asks: one connection that measures every answer, or wrk with several, whose own cost is small.

Raises BadAnswer as soon as anything but a good answer comes: a fast refusal is no speed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

WITHIN_S: Final = 30.0
# Sends the same message over and over, and says in the end what it saw, as one line of JSON.
_WRK: Final = """
local file = io.open("%s", "rb")
wrk.method = "POST"
wrk.path = "%s"
wrk.body = file:read("*all")
%s
function done(summary, latency, requests)
  io.write(string.format('{"requests": %%d, "us": %%d, "bad": %%d, "p50_us": %%d, "p99_9_us": %%d}\\n',
    summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99.9)))
end
"""


class BadAnswer(Exception):
    """Something that was asked was not answered with 200."""


class Throughput(NamedTuple):
    requests_per_s: float
    p50_ms: float
    p99_9_ms: float


class Connection:
    """Keep-alive, one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=WITHIN_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(8 * 1024**2)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, message: bytes) -> bytes:
        """The whole answer, head and body."""
        self._socket.sendall(message)
        view, have = memoryview(self._buffer), 0
        wanted = 0
        while not wanted or have < wanted:
            count = self._socket.recv_into(view[have:])
            if not count:
                raise BadAnswer("the connection ended")
            have += count
            if not wanted and (end := self._buffer.find(b"\r\n\r\n", 0, have)) >= 0:
                head = bytes(view[:end]).lower()
                if not head.startswith(b"http/1.1 200"):
                    raise BadAnswer(bytes(view[:have]).decode(errors="replace")[:500])
                wanted = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return bytes(view[:have])

    def latencies(self, message: bytes, times: int) -> npt.NDArray[np.float64]:
        """Milliseconds of each of so many requests, one after the other."""
        found = np.empty(times)
        for index in range(times):
            begun = time.perf_counter_ns()
            self.ask(message)
            found[index] = (time.perf_counter_ns() - begun) / 1e6
        return found


class Asking:
    """Connections that never stop asking, while something else is done: every answer's time, its version, and what went wrong."""

    def __init__(self, address: tuple[str, int], message: bytes, connections: int) -> None:
        self.answers: list[tuple[float, float, str]] = []  # asked at, answered at (CLOCK_MONOTONIC), by which version
        self.faults: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address, message)) for _ in range(connections)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(WITHIN_S)

    def _run(self, address: tuple[str, int], message: bytes) -> None:
        with Connection(address) as connection:
            while not self._stopping.is_set():
                begun = time.monotonic()
                try:
                    answer = connection.ask(message)
                except (OSError, BadAnswer) as error:
                    self.faults.append(str(error))
                    return
                version = answer.split(b'"model_version":"', 1)[1].split(b'"', 1)[0].decode()
                self.answers.append((begun, time.monotonic(), version))


def throughput(address: tuple[str, int], message: bytes, *, connections: int, seconds: int) -> Throughput:
    """By wrk: requests a second at so many connections. Raises BadAnswer."""
    head, _, body = message.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = [line.split(": ", 1) for line in lines[1:] if not line.startswith(("Host", "Content-Length"))]
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        content, script = Path(folder) / "body", Path(folder) / "script.lua"
        content.write_bytes(body)
        more = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers)
        script.write_text(_WRK % (content, lines[0].split(" ")[1], more))
        url = f"http://{address[0]}:{address[1]}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + WITHIN_S, check=True).stdout
    found = json.loads(said.strip().splitlines()[-1])
    if found["bad"] or not found["requests"]:
        raise BadAnswer(f"wrk saw {found['bad']} bad of {found['requests']}: {said}")
    return Throughput(found["requests"] / found["us"] * 1e6, found["p50_us"] / 1000, found["p99_9_us"] / 1000)
