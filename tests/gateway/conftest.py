"""A gateway with the stand-in worker, for every test that wants one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gateway_bench import GatewayBench, running_gateway


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[GatewayBench]:
    with running_gateway(tmp_path) as bench:
        yield bench
