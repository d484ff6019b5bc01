"""What every test shares: services of the machine, found once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.postgres import running_postgres

# Tests run models in this process too, and speak to nobody outside (see holdfast_worker/onnx_runtime.py).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A shared two-core machine stalls for longer than Hypothesis' default allows a single example.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL's URL. Each test that uses it makes and drops its own schema."""
    with running_postgres() as url:
        yield url
