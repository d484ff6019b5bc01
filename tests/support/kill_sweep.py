"""The sweep of SIGKILLs: lives of KILLS each, several side by side, each by its own seed, and what is done is remembered.

    ./scripts/sweep --kills 15000 --progress sweep.jsonl

A life that ended well is a line of the progress file, and is not lived again. Ends with 1 at the first promise broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

from support.kill_rig import Harmed, prepare, running_rig

KILLS: Final = 100  # of one life
DEVICES: Final = 3
# One after another: msgspec ends the process when several threads are the first to read a configuration.
_BEGINNING: Final = threading.Lock()


class Lived(NamedTuple):
    seed: int
    killed: dict[str, int]
    outcomes: dict[str, int]
    took_s: float


def live(seed: int, kills: int = KILLS) -> Lived:
    """One life. Raises Harmed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"holdfast-kills-{seed}-") as folder, contextlib.ExitStack() as stack:
        try:
            with _BEGINNING:
                rig = stack.enter_context(running_rig(seed, Path(folder)))
            asking = rig.live(kills)
        except Harmed as harm:
            harm.add_note(f"seed {seed}")
            raise
    return Lived(seed, dict(rig.killed), dict(asking.outcomes), round(time.monotonic() - began, 1))


def sweep(seeds: list[int], *, devices: int = DEVICES, told: Callable[[Lived], None] = lambda _: None) -> list[Lived]:
    """Each seed's life. Raises Harmed at the first that fails; the others are let go on to their end."""
    prepare()
    with ThreadPoolExecutor(devices) as pool:
        running = [pool.submit(live, seed) for seed in seeds]
        found = []
        try:
            for one in as_completed(running):
                found.append(one.result())
                told(found[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def total(lives: list[Lived]) -> tuple[Counter[str], Counter[str]]:
    """Kills by victim, and requests by outcome."""
    killed: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for one in lives:
        killed.update(one.killed)
        outcomes.update(one.outcomes)
    return killed, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="sweep", description="kill a device's real processes, again and again")
    parser.add_argument("--kills", type=int, default=3 * KILLS, help=f"in all, in lives of {KILLS}")
    parser.add_argument("--devices", type=int, default=DEVICES, help="side by side")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, help="what is done is remembered here, and not done again")
    asked = parser.parse_args()
    done = list(_done(asked.progress))
    known = {one.seed for one in done}
    seeds = [seed for seed in range(asked.first_seed, asked.first_seed + -(-asked.kills // KILLS)) if seed not in known]

    def told(lived: Lived) -> None:
        done.append(lived)
        if asked.progress is not None:
            with asked.progress.open("a") as stream:
                stream.write(json.dumps(lived._asdict()) + "\n")
        say(f"{total(done)[0].total()} of {asked.kills} kills; seed {lived.seed} took {lived.took_s} s")

    try:
        sweep(seeds, devices=asked.devices, told=told)
    except Harmed as harm:
        say("\n".join([f"HARMED: {harm}", *getattr(harm, "__notes__", [])]))
        return 1
    killed, outcomes = total(done)
    say(f"{killed.total()} kills ({_said(killed)}), no promise broken; requests: {_said(outcomes)}")
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _done(progress: Path | None) -> Iterator[Lived]:
    if progress is not None and progress.exists():
        yield from (Lived(**json.loads(line)) for line in progress.read_text().splitlines())


def _said(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())


if __name__ == "__main__":
    sys.exit(main())
