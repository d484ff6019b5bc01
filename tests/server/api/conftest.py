"""A server in this process, empty or with a fleet; its store can be compared before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running_server import Running, database_url, running_server, server_context


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with (
        database_url("sqlite", tmp_path, None) as url,
        server_context(url, tmp_path) as context,
        running_server(context, tmp_path) as running,
    ):
        yield running
