"""A registry for each test, on both databases, and one whose sample is a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.registry_shelf import Shelf
from support.running_server import SAMPLE, database_url, server_context


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    postgres = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with database_url(request.param, tmp_path, postgres) as url, server_context(url, tmp_path) as context:
        yield Shelf(context, tmp_path)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Shelf]:
    """One whose sample has two stages."""
    with database_url("sqlite", tmp_path, None) as url, server_context(url, tmp_path) as context:
        yield Shelf(context, tmp_path, SAMPLE.with_name("sample-pipeline"))
