"""What every test shares: services of the machine, found once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.postgres import running_postgres

# A shared two-core machine stalls for longer than Hypothesis' default allows a single example.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL's URL. Each test that uses it makes and drops its own schema."""
    with running_postgres() as url:
        yield url
