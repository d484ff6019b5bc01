"""From a start to the first good answer: a slot that has to be loaded first, and a device after a boot."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmark import questions
from benchmark.clients import BadAnswer, Connection
from benchmark.requests import OURS
from benchmark.rig import SHIPPED
from benchmark.table import Row
from holdfast_agent.core.record import PipelineRecord
from holdfast_shared.assign import Target
from support import digits_models, installed_release
from support.gateway_bench import PIPELINE, GatewayBench, eventually, write_record

_BARE: Final = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(open(sys.argv[1], "rb").read(), providers=["CPUExecutionProvider"])
session.run(None, {"image": numpy.zeros((1, 64), numpy.float32)})
"""

Told = Callable[[str], None]


def boot(folder: Path, times: int, told: Told) -> Iterator[Row]:
    """A gateway started on a record, as after a boot, and no agent. Most of the time is the worker's imports."""
    told(f"{times} starts of a gateway on its record")
    message = questions.binary(OURS, "image", digits_models.images()[:1], "probabilities")
    bench = GatewayBench(folder, worker=SHIPPED)
    target = Target(release=installed_release.install(bench.folder, PIPELINE, "1.0.0", digits_models.trained()))
    write_record(bench.folder, digits=PipelineRecord(current=target))
    model = folder / "model.onnx"
    model.write_bytes(digits_models.trained())
    found, bare = [], []
    for _ in range(times):
        begun = time.monotonic()
        bench.start()
        eventually(lambda: _answers(bench.address, message), "a good answer")
        found.append(time.monotonic() - begun)
        bench.stop()
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", _BARE, str(model)], check=True, timeout=60)
        bare.append(time.monotonic() - begun)
    yield Row(
        what="supervisor start to first good answer, as after a boot",
        ours=f"{statistics.median(found):.2f} s",
        peer=f"a bare process that imports numpy and onnxruntime, loads and runs once: {statistics.median(bare):.2f} s",
        ratio=statistics.median(found) / statistics.median(bare),
    )


def _answers(address: tuple[str, int], message: bytes) -> bool:
    try:
        with Connection(address) as connection:
            connection.ask(message)
    except (OSError, BadAnswer):
        return False
    return True
