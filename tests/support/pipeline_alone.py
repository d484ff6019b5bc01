"""One pipeline of a gateway in this process, with stand-in workers: what a gateway would be told, nobody hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from holdfast_gateway.slot import Slot
from holdfast_shared.assign import Target
from support.gateway_bench import DEADLINE_S


class Quiet:
    """A gateway that nobody listens to."""

    def status_changed(self) -> None: ...

    def failure_counted(self, slot: Slot) -> None: ...

    def switched(self, pipeline: str, target: Target, at_s: float) -> None: ...


class Waiting:
    """An application that waits for one answer."""

    def __init__(self) -> None:
        self.gone = self.ended = False
        self.came: tuple[int, str] | None = None

    def answer(self, status: int, header_length: int, body: bytes | memoryview) -> None:  # noqa: ARG002 - as a connection is answered
        self.came = status, json.loads(bytes(body)).get("model_version", "")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - the pipeline has no event for a test to wait on
            await asyncio.sleep(0.01)
