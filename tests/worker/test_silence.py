"""A model runtime says nothing to anybody but us: from 1.29 on onnxruntime reports to its maker, unless told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
from holdfast_worker import onnx_runtime
import onnxruntime
onnxruntime.InferenceSession
"""


@pytest.mark.slow
def test_importing_the_runtime_leaves_no_trace_of_telemetry(tmp_path: Path) -> None:
    """Its uploader leaves a session file in the temporary folder and a cache at home; without the uploader neither is there."""
    home = tmp_path / "home"
    folder = tmp_path / "tmp"
    for made in (home, folder):
        made.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**environment, "TMPDIR": str(folder), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    assert not list(home.iterdir())
