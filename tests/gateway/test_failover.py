"""A request that one slot cannot answer is answered by the other, and every count says what happened, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gateway_bench import GatewayBench, installed, running_gateway

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[GatewayBench]:
    with running_gateway(tmp_path) as bench:
        yield bench


def test_what_serves_answers(bench: GatewayBench) -> None:
    agent = bench.agent()
    target = installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(target))
    with bench.http() as http:
        status, answer = http.infer(id="7")
    assert (status, answer["model_version"], answer["id"]) == (200, "1.0.0", "7")
