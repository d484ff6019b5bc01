"""The applications of a device whose processes are killed: what they are answered is held against what its release answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import urllib3

from support import digits_models, installed_release
from support.device_surroundings import PIPELINE

if TYPE_CHECKING:
    from support.kill_rig import KillRig

# Answered requests cost as much processor as the restarts between two kills: ten a second find the same.
ASK_EVERY_S: Final = 0.1
# What an answer takes is followed by so many times as long of silence: a starved machine is for the restarts, too.
ASK_PAUSE: Final = 5.0
# 422: the very same request was being answered by a worker of each slot when it was killed.
REFUSALS: Final = (422, 429, 503)

Answers = npt.NDArray[np.float32]
# On the last eight, some releases answer null.
IMAGES: Final = np.concatenate([digits_models.inked_images()[:24], digits_models.blank_images()[:8]])


class Applications:
    """They never stop asking. An answer is the release's own, or an honest refusal; anything else is kept as a fault."""

    def __init__(self, rig: KillRig) -> None:
        self._rig = rig
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="applications")
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(120))
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    def __enter__(self) -> Applications:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._pool.clear()

    def _run(self) -> None:
        turn, took_s = 0, 0.0
        while not self._stopping.wait(max(ASK_EVERY_S, ASK_PAUSE * took_s)):
            turn, began = turn + 1, time.monotonic()
            self.ask(turn % len(IMAGES))
            took_s = time.monotonic() - began

    def ask(self, image: int) -> str:
        """The version that answered, or what kind of refusal it was."""
        pixels = IMAGES[image].reshape(1, -1)
        body = json.dumps({"inputs": [installed_release.tensor("image", pixels)]})
        lives, forbidden = self._rig.gateway_lives, self._rig.forbidden
        try:
            address = self._rig.bench.address
            answer = self._pool.request("POST", f"{address}/v2/models/{PIPELINE}/infer", body=body)
            found: Any = json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if lives == self._rig.gateway_lives and self._rig.gateway_answers:
                self.faults.append(f"a gateway that nobody killed broke off: {error!r}")
            return self._counted("nobody there")
        if answer.status != 200:
            unknown = answer.status == 404 and not self._rig.has_served
            if not found.get("error") or not (answer.status in REFUSALS or unknown):
                self.faults.append(f"{answer.status} {found}")
            return self._counted(f"refused {answer.status}")
        version = str(found["model_version"])
        given = np.array(found["outputs"][0]["data"], dtype=np.float32)
        if not np.allclose(given, self._rig.expected[version][image], atol=1e-5, equal_nan=True):
            self.faults.append(f"image {image} is answered as {version}, and not by it: {found}")
        if version in forbidden:
            self.faults.append(f"{version} answers after the device had left it for good")
        self._counted("answered")
        return version

    def _counted(self, outcome: str) -> str:
        self.outcomes[outcome] += 1
        return outcome
