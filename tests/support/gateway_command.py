"""The shipped gateway with another worker: `python -m support.gateway_command CONFIG WORKER…`.

GATEWAY_KEPT_S is how long a refuge that was needed is kept and GATEWAY_READY_WAIT_S how long a pipeline may hold up the start,
where a test does not wait a minute; GATEWAY_MEMINFO the file that says how much memory there is, where a test takes it away, and
GATEWAY_VMSTAT the one that says what the kernel ended for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from holdfast_agent.edge import configuration
from holdfast_gateway import gateway, pipeline, standby
from holdfast_gateway.main import serve

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    pipeline.KEPT_S = float(os.environ.get("GATEWAY_KEPT_S", pipeline.KEPT_S))  # type: ignore[attr-defined] # for tests alone
    gateway.READY_WAIT_S = float(os.environ.get("GATEWAY_READY_WAIT_S", gateway.READY_WAIT_S))  # type: ignore[misc] # for tests alone
    standby.MEMINFO = Path(os.environ.get("GATEWAY_MEMINFO", standby.MEMINFO))  # type: ignore[misc] # for tests alone
    standby.VMSTAT = Path(os.environ.get("GATEWAY_VMSTAT", standby.VMSTAT))  # type: ignore[misc] # for tests alone
    sys.exit(asyncio.run(serve(configuration.load(Path(sys.argv[1])), sys.argv[2:])))
