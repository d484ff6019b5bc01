"""A device that works holds what it held. `./scripts/bench device --only memory` is the same over a day's windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import lasting
from benchmark.footprint import PSS_MB

WINDOWS, REQUESTS = 60, 4_000


@pytest.mark.slow
def test_windows_and_requests_leave_nothing_behind(tmp_path: Path) -> None:
    """Agent, gateway and worker; and every request is in a report."""
    found = lasting.lasted(tmp_path, WINDOWS, REQUESTS)
    assert found.windows >= WINDOWS
    assert found.counted == REQUESTS
    assert found.growth_mb < lasting.GROWTH_MB
    assert found.pss.agent + found.pss.gateway < PSS_MB
