"""`python -m holdfast_agent.fetch`: fetch one target, say how it ended in one line, exit.

It reads hostile bytes, so it is a process of its own: whatever happens to it happens to nothing else. When its standard input is
a pipe, it ends with whoever holds the other end.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast_agent.edge import configuration, time_zone
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.fetch import outcome, staging
from holdfast_agent.fetch.allowance import Allowance
from holdfast_agent.fetch.line import Cap, Restraint
from holdfast_agent.fetch.manifests import Order, Source
from holdfast_agent.fetch.outcome import EXIT_STATUS, Outcome
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared import authorities
from holdfast_shared.errors import HoldfastError
from holdfast_shared.identifiers import DIGEST_PATTERN, ENVIRONMENT_PATTERN, SYSTEM_ENVIRONMENT
from holdfast_shared.variants import Machine
from holdfast_worker import accelerators, installed

# A gigabyte at 300 kB/s. What came is kept, so a longer one goes on at the next try.
DEADLINE_S: Final = 3600.0
ORPHANED_STATUS: Final = 70


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="fetch: %(message)s", stream=sys.stderr)
    _end_with_parent()
    ended = _run(asked)
    sys.stdout.buffer.write(outcome.encode(ended) + b"\n")
    sys.stdout.buffer.flush()
    return EXIT_STATUS[ended.code]


def _run(asked: argparse.Namespace) -> Outcome:
    try:
        found = configuration.load(asked.config)
        known = authorities.load(Path(found.device.authorities))
        allowance = Allowance(
            found.folder.network_budget, found.network, time_zone.load(found.device.time_zone), urgent=asked.urgent
        )
        source = Source(found.server.url, found.folder, known, _restraints(found, allowance), asked.from_disk)
        order = Order(asked.pipeline, asked.version, asked.digest, asked.environment)
        try:
            staging.stage(source, order, Deadline(asked.deadline_s), machine=machine_of(found))
        finally:
            allowance.settle()
    except (HoldfastError, OSError) as error:
        return outcome.of_error(error)
    return Outcome(ok=True)


def machine_of(found: Configuration) -> Machine:
    """This one, and what its runtimes miss to compute on the accelerators that its configuration says it has."""
    device, machine = found.device, installed.machine(found.device.accelerators)
    available = installed.onnx_providers() if device.accelerators and "onnx" in machine.runtimes else ()
    return replace(machine, unusable=accelerators.unusable(device.accelerators, available, device.delegates))


def _restraints(found: Configuration, allowance: Allowance) -> list[Restraint]:
    """What holds it back here: nothing, unless the configuration says so."""
    cap = found.fetch.bytes_per_s_max
    restraints: list[Restraint] = [Cap(cap)] if cap else []
    return restraints if found.network.metered == "no" else [*restraints, allowance]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m holdfast_agent.fetch", description="Fetch one release and exit.")
    parser.add_argument("--config", type=Path, required=True, help="the device's agent.toml")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--version", required=True, help="of the release")
    parser.add_argument("--digest", required=True, type=_digest, help="of the release's manifest: sha256:<64 digits>")
    parser.add_argument(
        "--environment", default=SYSTEM_ENVIRONMENT, type=_environment, help="that it is to run in, by its digest"
    )
    parser.add_argument("--urgent", action="store_true", help="what serves is condemned")
    parser.add_argument(
        "--from-disk", action="store_true", help="ask nothing of the server: it is all here, or it is not"
    )
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, metavar="SECONDS")
    return parser


def _digest(text: str) -> str:
    if not re.fullmatch(DIGEST_PATTERN.strip("^$"), text):
        raise argparse.ArgumentTypeError("write it as sha256: and 64 hexadecimal digits")
    return text


def _environment(text: str) -> str:
    if not re.fullmatch(ENVIRONMENT_PATTERN.strip("^$"), text):
        raise argparse.ArgumentTypeError(f"write it as {SYSTEM_ENVIRONMENT}, or as sha256: and 64 hexadecimal digits")
    return text


def _end_with_parent() -> None:
    """Watch the pipe that the parent holds: it closes when the parent ends, however it ends."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1024):  # nothing is ever written there
        pass
    os._exit(ORPHANED_STATUS)


if __name__ == "__main__":
    sys.exit(main())
