"""`holdfast-gateway`: the command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast_agent.edge import configuration
from holdfast_agent.edge.configuration import Configuration
from holdfast_gateway.gateway import Gateway
from holdfast_shared import __version__
from holdfast_shared.errors import HoldfastError

WORKER: Final = (sys.executable, "-m", "holdfast_worker")
_REFUSED: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="holdfast-gateway",
        description="Serve this device's models to its applications, over HTTP on loopback and a Unix socket.",
        epilog="It serves what the record says, with or without an agent. The configuration is deploy/agent.toml.",
    )
    parser.add_argument("--version", action="version", version=f"holdfast-gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="serve until SIGTERM or SIGINT")
    run.add_argument("--config", required=True, type=Path, metavar="FILE", help="the device's TOML file")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(serve(configuration.load(parsed.config), WORKER))
    except HoldfastError as error:
        print(f"holdfast-gateway: {error}", file=sys.stderr)
    except OSError as error:
        print(f"holdfast-gateway: cannot serve: {error}", file=sys.stderr)
    return _REFUSED


async def serve(loaded: Configuration, worker_command: Sequence[str]) -> int:
    """Serve until a signal says to stop. A worker is started as `worker_command --fd N`."""
    gateway = Gateway(loaded, worker_command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    await gateway.run()
    return 0
