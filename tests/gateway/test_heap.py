"""A burst of large requests leaves the gateway as small as it was: on a device that memory is the models'."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import psutil
import pytest

from support.gateway_bench import PIPELINE, eventually, running_gateway

pytestmark = pytest.mark.slow
BODY_BYTES = 12_000_000
CLIENTS = 12
# What a few more connections and their buffers may cost.
GROWN_BYTES_MAX = 12_000_000


def test_what_a_burst_took_is_given_back(tmp_path: Path) -> None:
    head = f"POST /v2/models/{PIPELINE}/infer HTTP/1.1\r\nContent-Length: {BODY_BYTES + 1}\r\n\r\n".encode()
    with running_gateway(tmp_path) as bench:
        gateway = psutil.Process(bench.pid)
        before = gateway.memory_info().rss
        with contextlib.ExitStack() as stay, contextlib.ExitStack() as leave:
            for _ in range(CLIENTS):
                client = leave.enter_context(socket.create_connection(bench.address, timeout=10))
                client.sendall(head + b"x" * BODY_BYTES)
                stay.enter_context(socket.create_connection(bench.address, timeout=10)).sendall(b"GET /v2 HT")
            eventually(lambda: gateway.memory_info().rss > before + CLIENTS * BODY_BYTES // 2, "it holds the bodies")
            leave.close()
            eventually(lambda: gateway.memory_info().rss < before + GROWN_BYTES_MAX, "it gave them back")
