"""What was measured, as rows; and the table of them that stands in a README between two marks."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime

COMMAND: Final = "scripts/bench device"
END: Final = "<!-- /measured -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`ratio` is ours over the peer's, `target` what it should be at most (or at least, when `at_least`)."""

    what: str
    ours: str
    peer: str
    ratio: float | None = None
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.ratio is None or self.target is None:
            return None
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "measured"
        bound = f"{'≥' if self.at_least else '≤'} {self.target:g}"
        return f"{bound}: {'met' if self.met else '**missed**'}"


def markdown(rows: Sequence[Row], date: str) -> str:
    """The table, with where and when it was measured."""
    lines = ["| what | Holdfast | peer or limit, same run | ratio | target |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        lines.append(f"| {row.what} | {row.ours} | {row.peer} | {ratio} | {row.verdict} |")
    return "\n".join([f"Measured {date} on {_machine()}.", "", *lines])


def put_into(readme: Path, text: str, command: str = COMMAND) -> None:
    """Replace what stands between the marks of that command. Raises ValueError when there are none."""
    begin = f"<!-- measured by {command} -->"
    before, mark, rest = readme.read_text().partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme} has no place for the table: {begin} … {END}")
    readme.write_text(f"{before}{begin}\n{text}\n{END}{after}")


def _machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"{os.cpu_count()} cores ({model}), CPython {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    )
