"""LiteRT's predecessor, `tflite-runtime`, keeps the same contract, on the numpy that it needs and on no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_worker.failures import LoadRefused
from holdfast_worker.tflite_runtime import check_numpy

# Made by ./scripts/test where its wheels exist.
FOLDER = Path(sys.prefix) / "tflite-legacy"
# The suite once more, in a process that finds the predecessor and no LiteRT.
CONTRACT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["ai_edge_litert"] = None
import numpy, pytest
from holdfast_worker.runtime import runtime_named
print(runtime_named("tflite").describe()["runtime"], "numpy", numpy.__version__)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-n", "0", "-k", "tflite", sys.argv[2]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="tflite-runtime has wheels up to CPython 3.11")
def test_the_predecessor_keeps_the_contract() -> None:
    """Also: a file that was cut off is refused, though this library itself would compute on it."""
    if not FOLDER.is_dir():
        assert not os.environ.get("CI"), f"{FOLDER} is missing: ./scripts/test makes it"
        pytest.skip(f"{FOLDER} is missing: ./scripts/test makes it")
    suite = Path(__file__).with_name("test_runtime_contract.py")
    ran = subprocess.run(
        [sys.executable, "-c", CONTRACT, str(FOLDER), str(suite)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.stdout.startswith("tflite-runtime 2.14.0 numpy 1."), ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("version", ["1.26.4", "1.22.0"])
def test_it_works_with_numpy_below_2(version: str) -> None:
    check_numpy("tflite-runtime 2.14.0", version)


@pytest.mark.parametrize("version", ["2.0.0", "2.4.6", "3.1.0rc1"])
def test_it_is_refused_with_numpy_2_in_words_that_help(version: str) -> None:
    """It would import, and kill the worker at its second model."""
    with pytest.raises(LoadRefused, match=r"holdfast\[tflite\], or numpy below 2") as refused:
        check_numpy("tflite-runtime 2.14.0", version)
    assert refused.value.code == "not-supported"
