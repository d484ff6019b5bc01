"""The release that shadows one pipeline: a worker of its own, asked what the serving slot has answered, and counted apart.

It answers nobody, is never among those that can, and nothing that becomes of it touches a slot. It is started when what serves
is ready and memory allows, and let go before anything else when memory runs short.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from holdfast_gateway import manifest, standby, suspicion
from holdfast_gateway.bench import Bench
from holdfast_gateway.comparing_worker import ComparingWorker
from holdfast_gateway.control import Shadowing, SlotState, SlotStatus
from holdfast_gateway.counts import Counts
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import Loss, Losses
from holdfast_gateway.manifest import Facts
from holdfast_gateway.shadow_queue import QUEUED_BYTES_MAX, Shadowed, ShadowQueue
from holdfast_gateway.slot import DETAIL_CHARACTERS_MAX
from holdfast_gateway.standby import Memory
from holdfast_gateway.suspicion import Finding
from holdfast_gateway.worker import Lost
from holdfast_shared.assign import Target
from holdfast_shared.errors import Damaged
from holdfast_shared.failure_codes import FailureCode, condemns
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.environment import Settings
from holdfast_worker.protocol import Answer, Compared, Failed, Ready

log = logging.getLogger(__name__)

# The least that there is: what serves has a core whenever it wants one.
NICE: Final = 19
NO_ROOM: Final = "too little memory is left to shadow with; it is started when there is more"
ENDED: Final = "the kernel ended its workers for want of memory, again and again; it is started again in ten minutes"
# What the kernel had to end may take others with it the next time: they have so long without it.
ENDED_REST_S: Final = 600.0


class Shadow:
    """One target, from `settle` to `retire`; `changed` is called whenever `status` is another, `left` when nothing is left."""

    def __init__(
        self,
        name: str,
        target: Target,
        counts: Counts,
        bench: Bench,
        *,
        changed: Callable[[], None],
        left: Callable[[Shadow], None],
    ) -> None:
        self.name = name
        self.target = target
        self.counts = counts
        self.state: SlotState = "stopped"
        self.code = self.detail = ""
        self.loads = 0
        self._bench = bench
        self._changed, self._left = changed, left
        self._loop = asyncio.get_running_loop()
        self._losses = Losses()
        self._queue = ShadowQueue()
        self._worker: ComparingWorker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._memory_bytes = 0  # when it was last measured
        self._ended_before = 0  # processes that the kernel had ended for want of memory when its worker was started
        self._rests_until = 0.0
        self._retired = False
        self._suspect = False  # it failed, and its environment is read before that is told

    def __str__(self) -> str:
        return f"{self.name} {self.target.release.version} (shadow)"

    # -- what is asked of it

    def settle(self, *, serves: bool, starting_bytes: int = 0) -> None:
        """Once a second, and when what serves is another: started or let go, as memory comes and goes.

        `starting_bytes` is what slots that come first will take.
        """
        memory = Memory.now()
        idle = self.state == "stopped" and self._worker is None and not self._suspect
        if idle and serves and not self._retired and self._loop.time() >= self._rests_until:
            self._start_if_it_fits(memory, starting_bytes)
        elif self.state in ("loading", "ready") and standby.lets_shadow_go(memory):
            self._rest(NO_ROOM)

    def measure_memory(self) -> None:
        """Once a second. What counts is what two in a row both reached, of its own: a slot of the same target has other ones."""
        now = self.memory_bytes()
        self.counts.memory_bytes_max = max(self.counts.memory_bytes_max, min(self._memory_bytes, now))
        self._memory_bytes = now

    def offer(self, asked: Inference, answer: Answer) -> None:
        """A request that the serving slot has answered: its answer has left, and nothing waits for what happens here."""
        size = len(asked.body) + len(answer.body)
        if self.state not in ("loading", "ready") or self._suspect or size > QUEUED_BYTES_MAX:
            self.counts.shadow.dropped()
            return
        one = Shadowed(asked, bytes(answer.body), answer.header_length, answer.compute_us)
        self.counts.shadow.dropped(self._queue.put(one))
        self._ask_next()

    def retire(self) -> None:
        """It shadows no more: what it has not been asked is dropped, and what it is at is not waited for."""
        self._retired = True
        self.state = "stopped"
        self._end_worker()
        if self._worker is None:
            self._left(self)

    def kill(self) -> None:
        """End what is left of it."""
        if self._worker is not None:
            self._worker.kill()

    def status(self) -> SlotStatus:
        return SlotStatus(
            pipeline=self.name,
            target=self.target,
            state=self.state,
            code=self.code,
            detail=self.detail,
            losses=self._losses.total,
            loads=self.loads,
            worker_pid=self._worker.pid if self._worker is not None else 0,
        )

    def told(self) -> Shadowing:
        """For whoever asks on the device itself."""
        so_far = self.counts.shadow.totals
        return Shadowing(
            name=self.name,
            version=self.target.release.version,
            state=self.state,
            detail=self.detail,
            requests=so_far.requests,
            dropped=so_far.dropped,
            compared=so_far.compared,
            agreed=so_far.agreed,
        )

    def memory_bytes(self) -> int:
        return self._worker.memory_bytes() if self._worker is not None else 0

    # -- what its worker says

    def ready(self, ready: Ready) -> None:  # noqa: ARG002 - what serves has told of this device
        self._losses.ready()
        self._become("ready")
        self._ask_next()

    def answered(self, inference: Inference, answer: Answer, latency_ms: float) -> None:  # noqa: ARG002 - the owner's form
        raise AssertionError("its worker compares, and answers nobody")

    def compared(self, asked: Shadowed, told: Compared) -> None:
        self.counts.shadow.compared(told, asked.serving_us)
        self._ask_next()

    def refused(self, failed: Failed) -> None:
        self._worker = None
        if self._retired:
            self._left(self)
        elif self.state == "loading" and not self._suspect:
            self._fail(failed.code, failed.detail)

    def lost(self, lost: Lost) -> None:
        self._worker = None
        if lost.culprit is not None:
            self.counts.shadow.lost(hang=lost.loss is Loss.HANG)
        self.counts.shadow.dropped(len(lost.behind))
        if self._retired:
            self._left(self)
        elif self.state in ("loading", "ready") and not self._suspect:
            self._charge(lost)

    def ended(self) -> None:
        self._worker = None
        if self._retired:
            self._left(self)

    # -- its life

    def _start_if_it_fits(self, memory: Memory, starting_bytes: int) -> None:
        found = self._prepared()
        if found is None:
            return
        if standby.is_shadowed(memory, standby.needed_bytes(found[0].file_bytes) + starting_bytes):
            self.code = self.detail = ""
            self._start()
        elif self.detail != NO_ROOM:
            self.code, self.detail = FailureCode.NO_MEMORY, NO_ROOM
            self._changed()

    def _prepared(self) -> tuple[Facts, Settings] | None:
        """What its start takes; None: it has failed."""
        release = self.target.release.digest
        try:
            facts = manifest.read(self._bench.folder.manifest(release), release, self.name)
            return facts, self._bench.settings_of(self.target.environment)
        except Damaged as error:
            self._fail(FailureCode.DAMAGED_BLOB, error.message)
        except OSError as error:  # too many open files, a disk that stutters: no word about the bytes
            self._fail(FailureCode.UNREADABLE, f"its manifest cannot be read: {error}")
        return None

    def _start(self) -> None:
        self._forget_timer()
        found = self._prepared()
        if found is None:
            return
        facts, settings = found
        load = msgspec.structs.replace(
            self._bench.load_of(self.name, self.target, settings),
            nice=max(NICE, self._bench.confinement.nice),
            shadows=True,
        )
        self._worker = ComparingWorker(f"worker {self}", load, facts.limits, self)
        self._losses.started(self._loop.time())
        self._ended_before = standby.ended_for_memory()
        self.loads += 1
        self.counts.life.starts += 1
        self._bench.start(self._worker, self.target.environment, settings)
        self._become("loading")

    def _charge(self, lost: Lost) -> None:
        """Every loss is its own: what serves had answered the same request well. But the device's memory is not its own."""
        log.warning("%s: its worker was lost (%s): %s", self, lost.loss.name.lower(), lost.detail)
        self.counts.life.losses += 1
        self.detail = lost.detail[:DETAIL_CHARACTERS_MAX]
        self.code = FailureCode.HANG if lost.loss is Loss.HANG else FailureCode.CRASH
        delay_s = self._losses.restart_delay_s(self._loop.time())
        code = self._losses.charge(lost.loss, self._loop.time())
        if code and lost.killed and standby.ended_for_memory() > self._ended_before:
            self._rests_until = self._loop.time() + ENDED_REST_S
            self._rest(ENDED)
            return
        if code:
            self._fail(code, self.detail)
            return
        self._timer = self._loop.call_later(delay_s, self._start)
        self._become("loading")

    def _ask_next(self) -> None:
        worker = self._worker
        if worker is not None and worker.is_ready and not worker.asked and self._queue:
            worker.compare(self._queue.pop())

    def _rest(self, why: str) -> None:
        log.info("%s is let go: %s", self, why)
        self.code, self.detail = FailureCode.NO_MEMORY, why
        self._become("stopped")
        self._end_worker()

    def _fail(self, code: str, detail: str) -> None:
        """It has failed for good. What would condemn it is told once its environment, if it has one of its own, proved whole."""
        if self.target.environment == SYSTEM_ENVIRONMENT or not condemns(code):
            self._fail_now(code, detail)
            return
        log.warning("%s: its environment is verified before this is held against it: %s: %s", self, code, detail)
        self._suspect = True
        self._become("loading")
        self._end_worker()

        def told(found: Finding) -> None:
            self._suspect = False
            if not self._retired and self.state == "loading":  # else it was let go meanwhile, and is started anew
                self._fail_now(found.code or code, found.detail or detail)

        suspicion.verify(self._bench.folder.environment(self.target.environment), told)

    def _fail_now(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail[:DETAIL_CHARACTERS_MAX]
        log.error("%s has failed: %s: %s", self, code, self.detail)
        self._become("failed")
        self._end_worker()

    def _end_worker(self) -> None:
        """With what it was to be asked; what it is at is dropped, and nobody's fault."""
        self._forget_timer()
        self.counts.shadow.dropped(self._queue.clear())
        worker = self._worker
        if worker is None:
            return
        if worker.is_ready and not worker.asked:
            worker.stop()
        else:
            worker.kill()

    def _become(self, state: SlotState) -> None:
        if state != self.state:
            log.info("%s is %s", self, state)
        self.state = state
        self._changed()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
