"""A release folder to spoil: a copy of the sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample-release"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "release"
    shutil.copytree(SAMPLE, copy)
    return copy
