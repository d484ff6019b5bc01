"""The shipped gateway with another worker: `python -m support.gateway_command CONFIG WORKER…`."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from holdfast_agent.edge import configuration
from holdfast_gateway.main import serve

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(asyncio.run(serve(configuration.load(Path(sys.argv[1])), sys.argv[2:])))
