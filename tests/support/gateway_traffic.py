"""Applications at a real gateway: some that ask all the time, and some that ask in one order."""

from __future__ import annotations

import json
import threading
from http.client import HTTPException
from typing import Any

from support.gateway_bench import DEADLINE_S, PIPELINE, GatewayBench, Http, eventually


class Load:
    """Applications that ask all the time, each on its own connection; every answer is kept."""

    def __init__(self, bench: GatewayBench, connections: int = 4, *, raw: bytes = b"", **do: str) -> None:
        """They send `raw`, or ask the stand-in to `do`."""
        self._raw = raw
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.versions_each: list[list[str]] = [[] for _ in range(connections)]  # by connection, in its order
        self.faults: list[str] = []
        self._bench, self._do = bench, do
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(own,), daemon=True) for own in self.versions_each]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=DEADLINE_S)

    def _run(self, own: list[str]) -> None:
        with self._bench.http() as http:
            while not self._stopping.is_set():
                try:
                    answer = http.infer_raw(self._raw) if self._raw else http.infer(**self._do)
                    self.answers.append(answer)
                    own.append(str(answer[1].get("model_version", "")))
                except (OSError, HTTPException, ValueError) as error:
                    self.faults.append(f"{type(error).__name__}: {error}")
                    return

    @property
    def failed(self) -> list[object]:
        """What was not answered well."""
        return [*self.faults, *(answer for answer in self.answers if answer[0] != 200)]

    def versions(self) -> list[str]:
        return [str(answer["model_version"]) for status, answer in self.answers if status == 200]

    def until_answered_by(self, version: str, times: int = 20) -> None:
        """Wait for so many more answers of that release."""
        begun = len(self.answers)
        eventually(
            lambda: self.faults or sum(one[1].get("model_version") == version for one in self.answers[begun:]) >= times,
            f"{version} does not answer",
        )


class Queue:
    """Connections whose requests reach the worker in the order in which they are sent."""

    def __init__(self, bench: GatewayBench, connections: int) -> None:
        self._peers = [Http(*bench.address) for _ in range(connections)]
        self._other = bench.http()
        for peer in self._peers:  # one that is still being accepted is read after others that asked later
            assert peer.get("/v2/health/live")[0] == 200

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in (*self._peers, self._other):
            peer.close()

    def send(self, *do: dict[str, str]) -> None:
        """One request on each connection: what becomes of it, by version."""
        for peer, what in zip(self._peers, do, strict=True):
            peer.send("POST", f"/v2/models/{PIPELINE}/infer", json.dumps({"do": what}).encode())
            # What the kernel has ready at once is read in any order; so each is read before the next is sent.
            assert self._other.get("/v2/health/live")[0] == 200

    def answers(self) -> list[tuple[int, Any]]:
        """In the same order."""
        return [(status, json.loads(body)) for status, _, body in (peer.receive() for peer in self._peers)]
