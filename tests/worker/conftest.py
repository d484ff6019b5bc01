"""What the worker's tests share: an empty device's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)
