"""The demo is the product's main job, whole: run as its user runs it, and judged by its summary and by what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "demonstration"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
KEYS = {
    "requests": {"sent", "failed", "failed_over"},
    "bad_release": {
        "version", "local_fallback_ms", "breach_to_halt_s", "halt_to_fleet_back_s",
        "activated", "cohort", "outside_cohort", "evidence",
    },
    "segment_rollback": {"devices", "p50_s", "p95_s", "max_s", "outside_segment"},
    "kills": {"worker", "agent"},
}  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name, unlike pytest's: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        yield Path(folder)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Whoever has the folder on their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_once_tells_the_whole_story_and_leaves_nothing_running(place: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--once", "--json", "--light", "60"],
        capture_output=True,
        text=True,
        timeout=580,
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(place)},
    )
    assert done.stdout, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"], f"{summary.get('missed')}\n{done.stderr[-3000:]}"
    assert done.returncode == 0
    for name, keys in KEYS.items():
        assert keys <= summary[name].keys()
    assert summary["requests"]["failed"] == 0 < summary["requests"]["failed_over"]
    assert summary["bad_release"]["outside_cohort"] == 0 < summary["bad_release"]["activated"]
    assert len(summary["gateways"]) == 6
    assert not processes_of(place)
    assert not list(place.iterdir()), "a demo that went well leaves no folder"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_demo_that_is_killed_takes_its_processes_with_it(place: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "--once", "--light", "30"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(place)},
    )
    try:
        wait_until(lambda: len(processes_of(place)) > 4, "its processes are up")
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.wait(timeout=10)
    wait_until(lambda: not processes_of(place), "they are gone")


def wait_until(condition: Any, what: str, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)
