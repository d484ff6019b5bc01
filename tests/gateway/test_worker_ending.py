"""How a lost worker is said to have ended: by itself, or that it did not; never by what the gateway then did to it."""

from __future__ import annotations

import asyncio

import pytest

from holdfast_gateway import worker
from holdfast_gateway.child import Child
from holdfast_gateway.confinement import Confinement
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import Loss
from holdfast_gateway.worker import Lost, Worker
from holdfast_shared.wire.release import Limits
from holdfast_worker.protocol import Answer, Failed, Load, Ready

LOAD = Load(pipeline="p", release="sha256:" + "0" * 64, environment="system", manifests="/none", blobs="/none")
WITHIN_S = 30.0


class SoonGone(Child):
    """A killed process is gone before anything else happens, as now and then on a busy machine."""

    def kill(self) -> None:
        super().kill()
        self._process.wait(WITHIN_S)


class Listening:
    """The owner of one worker, which is never ready."""

    def __init__(self) -> None:
        self.lost_one: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    def ready(self, ready: Ready) -> None: ...

    def answered(self, inference: Inference, answer: Answer, latency_ms: float) -> None: ...

    def refused(self, failed: Failed) -> None: ...

    def ended(self) -> None: ...

    def lost(self, lost: Lost) -> None:
        self.lost_one.set_result(lost)


@pytest.mark.parametrize(
    ("then", "said"),
    [("exec sleep 3600", "its connection broke, and it lived on"), ("kill -SEGV $$", "killed by SIGSEGV")],
)
def test_a_worker_is_not_said_to_be_killed_by_what_ended_it_afterwards(
    then: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`killed by SIGKILL` is what people read as a shortage of memory."""
    monkeypatch.setattr(worker, "Child", SoonGone)
    closes = ("/bin/bash", "-c", f'eval "exec $2>&-"; {then}', "bash")  # called with: --fd N

    async def lost() -> Lost:
        owner = Listening()
        started = Worker("worker", LOAD, Limits(), owner)
        started.start(closes, Confinement(), {})
        found = await asyncio.wait_for(owner.lost_one, WITHIN_S)
        while not started.gone:  # noqa: ASYNC110 - a process and its pipe, which nobody tells of
            await asyncio.sleep(0.01)
        return found

    found = asyncio.run(lost())
    assert (found.loss, found.detail) == (Loss.LOAD, said)
