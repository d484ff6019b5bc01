"""What the cameras' applications do all the time: ask their gateway what digit an image shows, one request after the other.

An application here knows nothing of Holdfast but an address and the Open Inference Protocol. It retries nothing: what is not
answered, or answered with something that is no probability, has failed.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError

from demonstration.digits import PIPELINE, Images

REQUESTS_A_SECOND: Final = 20.0
ANSWER_S: Final = 10.0
# Kept of what failed: enough to see why, bounded.
FAILURES_KEPT: Final = 20
_OK: Final = 200


class Counts(NamedTuple):
    sent: int
    failed: int
    right: int

    def __add__(self, other: object) -> Counts:
        assert isinstance(other, Counts)
        return Counts(self.sent + other.sent, self.failed + other.failed, self.right + other.right)


class Application:
    """One application at one gateway. It begins once the gateway says that the pipeline is ready, and ends at `stop`."""

    def __init__(self, device: str, address: str, images: Images, *, seed: int) -> None:
        self.device = device
        self.address = address
        self.failures: list[str] = []
        self.versions: dict[str, int] = {}
        self._images = images
        self._order = np.random.default_rng(seed)
        self._http = urllib3.PoolManager(
            maxsize=1, retries=False, timeout=urllib3.Timeout(connect=ANSWER_S, read=ANSWER_S)
        )
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._counts = Counts(0, 0, 0)
        self._thread = threading.Thread(target=self._run, name=f"application-{device}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=ANSWER_S + 1)
        self._http.clear()

    @property
    def counts(self) -> Counts:
        with self._lock:
            return self._counts

    def _run(self) -> None:
        while not self._ready():
            if self._stopping.wait(1 / REQUESTS_A_SECOND):
                return
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / REQUESTS_A_SECOND, time.monotonic() - 1.0)
            self._ask(int(self._order.integers(len(self._images.labels))))

    def _ready(self) -> bool:
        try:
            return self._http.request("GET", f"{self.address}/v2/models/{PIPELINE}/ready").status == _OK
        except HTTPError:
            return False

    def _ask(self, row: int) -> None:
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": self._images.pixels[row].tolist()}
        body = json.dumps({"id": str(row), "inputs": [tensor]}).encode()
        fault, right, version = "", False, ""
        try:
            answer = self._http.request(
                "POST",
                f"{self.address}/v2/models/{PIPELINE}/infer",
                body=body,
                headers={"content-type": "application/json"},
            )
            fault, right, version = self._judge(answer.status, answer.data, row)
        except HTTPError as error:
            fault = f"{type(error).__name__}: {error}"
        with self._lock:
            self._counts += Counts(1, bool(fault), right)
            if version:
                self.versions[version] = self.versions.get(version, 0) + 1
            if fault and len(self.failures) < FAILURES_KEPT:
                self.failures.append(f"{self.device}: {fault}")

    def _judge(self, status: int, raw: bytes, row: int) -> tuple[str, bool, str]:
        """(fault, whether the digit is right, the version that answered)."""
        if status != _OK:
            return f"{status} {raw[:200]!r}", False, ""
        answer: Any = json.loads(raw)
        found = next(one["data"] for one in answer["outputs"] if one["name"] == "probabilities")
        if len(found) != 10 or not all(isinstance(one, float | int) and math.isfinite(one) for one in found):
            return f"no probabilities: {found!r:.200}", False, ""
        right = max(range(len(found)), key=found.__getitem__) == int(self._images.labels[row])
        return "", right, str(answer.get("model_version"))


def total(applications: Sequence[Application]) -> Counts:
    return sum((one.counts for one in applications), Counts(0, 0, 0))
