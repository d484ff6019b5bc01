"""`python -m benchmark device`: measure, say each row as it is found, and the table at the end."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmark import footprint, lasting, peers, requests, starting, switches, table
from benchmark.requests import Size
from benchmark.table import Row

README: Final = peers.ROOT / "agent" / "README.md"
FULL: Final = Size(rounds=10, requests=1000, seconds=3)
QUICK: Final = Size(rounds=3, requests=200, seconds=1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure speed, as ratios to peers in one run.")
    commands = parser.add_subparsers(dest="command", required=True)
    device = commands.add_parser("device", help="gateway, worker and agent of one device")
    device.add_argument("--quick", action="store_true", help="a minute or two, and coarse: to see that it works")
    device.add_argument("--only", nargs="+", choices=sorted(_cases(quick=True)), help="these cases alone")
    device.add_argument(
        "--write", action="store_true", help="put the table into agent/README.md, where it has a place for these cases"
    )
    asked = parser.parse_args()
    if not peers.PEERS_PYTHON.exists():
        _tell("MLServer is left out: ./scripts/bench makes .venv-peers for it unless HOLDFAST_NO_PEERS is set")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        for name, case in _cases(quick=asked.quick).items():
            if asked.only and name not in asked.only:
                continue
            home = Path(folder) / name
            home.mkdir()
            for row in case(home):
                rows.append(row)
                ratio = f"{row.ratio:.2f} " if row.ratio is not None else ""
                print(f"{row.what}: {row.ours}; {row.peer}: {ratio}({row.verdict})", flush=True)
    text = table.markdown(rows, dt.datetime.now(dt.UTC).date().isoformat())
    print(f"\n{text}")
    if asked.write:
        only = " ".join(["", "--only", *asked.only]) if asked.only else ""
        table.put_into(README, text, table.COMMAND + only)
    return 1 if any(row.met is False for row in rows) else 0


def _cases(*, quick: bool) -> dict[str, Callable[[Path], Iterator[Row]]]:
    size = QUICK if quick else FULL
    return {
        "small": lambda home: requests.small(home, size, _tell),
        "large": lambda home: requests.large(home, size, _tell),
        "switches": lambda home: switches.warm(home, 100 if quick else 1000, _tell),
        "rollback": lambda home: switches.rollback(home, 5 if quick else 60, _tell),
        "boot": lambda home: starting.boot(home, 3 if quick else 20, _tell),
        "idle": lambda home: footprint.idle(home, 20 if quick else 120, _tell),
        "memory": lambda home: lasting.memory(home, 60 if quick else 1440, 4_000 if quick else 100_000, _tell),
    }


def _tell(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
