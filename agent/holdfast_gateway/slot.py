"""One (release, environment) of one pipeline, and the worker that runs it: started, watched, started again, given up.

A slot does not know whether it serves. What it cannot answer it hands to its pipeline, which knows who else could.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from holdfast_gateway import manifest, standby, suspicion
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import SlotState, SlotStatus
from holdfast_gateway.counts import Counts
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import Loss, Losses
from holdfast_gateway.manifest import Facts
from holdfast_gateway.suspicion import Finding
from holdfast_gateway.worker import ASKED_MAX, Lost, Worker
from holdfast_shared.assign import Target
from holdfast_shared.errors import Damaged
from holdfast_shared.failure_codes import FailureCode, condemns
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_worker.protocol import Answer, Failed, Ready

log = logging.getLogger(__name__)

# Waiting in the gateway for one worker, beside what it was asked. More would wait longer than an application does.
WAITING_MAX: Final = 128
# A slot that is not named any more answers what it was asked; each of those has its own deadline, all together this one.
DRAIN_S: Final = 30.0
# A process that ends takes a core for some milliseconds, in which the slot that serves instead has its first requests to answer.
LINGER_S: Final = 0.25
# Of a release that takes longer to load after a restart, nobody keeps an application waiting who could be told.
RESUMED_WITHIN_S: Final = 15.0
DETAIL_CHARACTERS_MAX: Final = 500
# What `Status` and the repository index say of it.
COLD: Final = "kept cold ([gateway] standby): it is started when it is needed"


class Pipeline(Protocol):
    """What a slot tells the pipeline that it belongs to."""

    def changed(self, slot: Slot) -> None:
        """Its state is another one."""

    def answered(self, slot: Slot, inference: Inference, answer: Answer, latency_ms: float) -> None: ...

    def lost(self, slot: Slot, lost: Lost) -> None:
        """Its worker is gone, with what it had been asked."""

    def submit(self, inference: Inference) -> None:
        """Have it answered by whoever can now."""

    def left(self, slot: Slot) -> None:
        """It was retired, and nothing is left of it."""


class Slot:
    """`state` is what `Status` says. `ready_said` is what the worker told when it was last ready."""

    def __init__(self, pipeline: Pipeline, name: str, target: Target, counts: Counts, bench: Bench) -> None:
        self.name = name
        self.target = target
        self.version: str = target.release.version
        self.counts = counts
        self.state: SlotState = "stopped"
        self.code = self.detail = ""
        self.failed_at = 0.0
        self.loads = 0
        self.ready_said: Ready | None = None
        self.ready_at = 0.0
        self._pipeline = pipeline
        self._bench = bench
        self._loop = asyncio.get_running_loop()
        self._losses = Losses()
        self._facts: Facts | None = None
        self._worker: Worker | None = None
        self._waiting: deque[Inference] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._retired = False
        self._linger_s = 0.0
        self._on_demand = False  # it is cold, or was when it was last started
        self._resumes = False  # it is loaded as it was before this gateway was started, for the first time since
        self._suspect = False  # it failed, and its environment is read before that is told
        self._start_due = False  # as soon as the worker that is being stopped has ended

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    # -- its life

    def start(self) -> None:
        """Load it. Its state changes at once, and again when it is ready or has failed."""
        self._forget_timer()
        if self._worker is not None:  # it was let go a moment ago
            self._start_due = True
            self._become("loading")
            return
        try:
            facts = self._read_facts()
            settings = self._bench.settings_of(self.target.environment)
        except Damaged as error:
            self._fail(FailureCode.DAMAGED_BLOB, error.message)
            return
        except OSError as error:  # too many open files, a disk that stutters: no word about the bytes
            self._fail(FailureCode.UNREADABLE, f"its manifest cannot be read: {error}")
            return
        if self.loads == 0:
            self.counts.look_back(facts.window_s)
        load = msgspec.structs.replace(self._bench.load_of(self.name, self.target, settings), measures=True)
        self._worker = Worker(f"worker {self}", load, facts.limits, self)
        self._losses.started(self._loop.time())
        self.loads += 1
        self.counts.life.starts += 1
        self._bench.start(self._worker, self.target.environment, settings)
        self._become("loading")

    def _read_facts(self) -> Facts:
        """Raises Damaged or OSError."""
        path = self._bench.folder.manifest(self.target.release.digest)
        self._facts = manifest.read(path, self.target.release.digest, self.name)
        return self._facts

    def keep_cold(self) -> None:
        """It is not loaded until it is needed."""
        self._on_demand = True
        self.detail = COLD

    def resume(self) -> None:
        """It is loaded because the record names it: whoever asks meanwhile asks something that was there a moment ago."""
        self._resumes = self.state == "loading"

    def start_on_demand(self) -> None:
        """Somebody needs it now."""
        log.info("%s is started: it is needed", self)
        self.detail = ""
        self.start()

    def rest(self) -> None:
        """End its worker, which has nothing to do: it is cold again."""
        if self._worker is None or not self.idle:
            return
        log.info("%s is let go: little memory is left, or it is to be cold", self)
        self.keep_cold()
        self._become("stopped")
        self._worker.stop()

    def start_afresh(self) -> None:
        """Forget that it failed, and load it again. One that is loading or ready goes on as it is."""
        if self.state == "failed":
            self._losses = Losses()
            self.code = self.detail = ""
            self.counts.forget_sliding()
            self.start()

    def retire(self, linger_s: float = 0.0) -> None:
        """Ask nothing more of it; what it was asked is answered, then it ends. What is waiting goes back to the pipeline."""
        self._retired = True
        self._linger_s = linger_s
        self._start_due = False
        self._forget_timer()
        self.state = "stopped"
        self.hand_back()
        worker = self._worker
        if worker is None:
            self._loop.call_soon(self._pipeline.left, self)
        elif not worker.is_ready:
            worker.kill()
        elif not worker.asked:
            self._timer = self._loop.call_later(linger_s, worker.stop)
        else:
            self._timer = self._loop.call_later(DRAIN_S, worker.kill)

    def revive(self) -> bool:
        """Take the retirement back, if its worker can still be asked."""
        if self._worker is None or not self._worker.is_ready:
            return False
        self._retired = False
        self._forget_timer()
        self.state = "ready"
        return True

    def kill(self) -> None:
        """End its worker now, if it has one. It must be retired, or have failed."""
        if self._worker is not None:
            self._worker.kill()

    # -- requests

    def offer(self, inference: Inference) -> None:
        """Have it answered. The slot must be ready."""
        worker = self._worker
        assert worker is not None
        if len(worker.asked) < ASKED_MAX and not self._waiting:
            worker.ask(inference)
        elif len(self._waiting) < WAITING_MAX:
            self._waiting.append(inference)
        else:
            self.counts.life.rejected += 1
            inference.refuse(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{WAITING_MAX} requests are waiting for {self} already; ask less often, or again later",
            )

    def take_over(self, inference: Inference) -> None:
        """Have a request answered that another slot failed: before all that wait, and however many do."""
        worker = self._worker
        assert worker is not None
        if len(worker.asked) < ASKED_MAX:
            worker.ask(inference)
        else:
            self._waiting.appendleft(inference)

    def hand_back(self) -> None:
        """Give all that wait, and were never asked, back to the pipeline: another slot serves now."""
        waiting, self._waiting = self._waiting, deque()
        for inference in waiting:
            self._pipeline.submit(inference)

    # -- what its worker says

    def ready(self, ready: Ready) -> None:
        self._losses.ready()
        self._resumes = False
        self.ready_said = ready
        self.ready_at = self._loop.time()
        self.counts.measuring = ready.measuring
        self._become("ready")

    def answered(self, inference: Inference, answer: Answer, latency_ms: float) -> None:
        worker = self._worker
        assert worker is not None
        while self._waiting and len(worker.asked) < ASKED_MAX:
            waiting = self._waiting.popleft()
            if waiting.asker.gone:
                self.counts.life.abandoned += 1
            else:
                worker.ask(waiting)
        self._pipeline.answered(self, inference, answer, latency_ms)
        if self._retired and not worker.asked:
            self._forget_timer()
            self._timer = self._loop.call_later(self._linger_s, worker.stop)

    def refused(self, failed: Failed) -> None:
        self.ended()
        if not self._retired:
            self._fail(failed.code, failed.detail)

    def lost(self, lost: Lost) -> None:
        """The pipeline settles what it was asked; a loss without a culprit is charged at once."""
        log.warning("%s: its worker was lost (%s): %s", self, lost.loss.name.lower(), lost.detail)
        self._worker = None
        self.counts.life.losses += 1
        if self._retired or self._suspect or self.state == "failed":
            self._pipeline.lost(self, lost)
            self.ended()
            return
        self.detail = lost.detail[:DETAIL_CHARACTERS_MAX]
        delay_s = self._losses.restart_delay_s(self._loop.time())
        self._timer = self._loop.call_later(delay_s, self.start)
        self._become("loading")
        if lost.culprit is None:
            self.charge(lost.loss)
        self._pipeline.lost(self, lost)
        self.hand_back()

    def ended(self) -> None:
        self._worker = None
        if self._retired:
            self._pipeline.left(self)
        elif self._start_due:
            self._start_due = False
            self.start()

    def charge(self, loss: Loss) -> None:
        """Count a loss as this slot's own; too many, and it is given up."""
        code = self._losses.charge(loss, self._loop.time())
        if self.state != "failed":
            self.code = FailureCode.HANG if loss is Loss.HANG else FailureCode.CRASH
        if code and self.state != "failed" and not (self._retired or self._suspect):
            self._fail(code, self.detail)
            self.kill()
        else:
            self._pipeline.changed(self)

    # -- what is said of it

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

    def described(self) -> str:
        """In words, for a request that nobody can answer."""
        why = f" ({self.code}: {self.detail})" if self.state == "failed" else ""
        return f"{self.version} {'has failed' if self.state == 'failed' else 'is ' + self.state}{why}"

    @property
    def comes_back(self) -> bool:
        """Its worker is being started again, or because it is needed: it is worth waiting for."""
        expected = self.ready_said is not None or self._on_demand or self._resumes
        return self.state == "loading" and not self._suspect and expected

    @property
    def cold(self) -> bool:
        """It is not loaded, and may be started when it is needed."""
        return self.state == "stopped" and not self._retired

    @property
    def idle(self) -> bool:
        """It is loaded and has nothing to do."""
        return self.state == "ready" and self._worker is not None and not self._worker.asked and not self._waiting

    @property
    def used_at(self) -> float:
        """When it last answered, or became ready."""
        return max(self.ready_at, self.counts.life.answered_at_s)

    @property
    def needed_bytes(self) -> int:
        """What its worker will take, as far as that is known."""
        try:
            return standby.needed_bytes((self._facts or self._read_facts()).file_bytes)
        except (Damaged, OSError):  # which starting it will tell
            return 0

    @property
    def deadline_s(self) -> float:
        """How long one request may take. The slot must have been started."""
        assert self._facts is not None
        return self._facts.limits.deadline_ms / 1000

    @property
    def patience_s(self) -> float:
        """How long a request waits for it: as long as one may take; after a restart of the gateway, as it may take to load.

        The slot must have been started.
        """
        assert self._facts is not None
        if not self._resumes:
            return self.deadline_s
        return max(self.deadline_s, min(self._facts.limits.load_deadline_s, RESUMED_WITHIN_S))

    def memory_bytes(self) -> int:
        """Of its worker now; 0 while there is none."""
        return self._worker.memory_bytes() if self._worker is not None else 0

    def measure_memory(self) -> None:
        self.counts.memory(self.memory_bytes(), self._loop.time())

    def _fail(self, code: str, detail: str) -> None:
        """It has failed for good. What would condemn it is told once its environment, if it has one of its own, proved whole."""
        self._forget_timer()
        detail = detail[:DETAIL_CHARACTERS_MAX]
        if self.target.environment == SYSTEM_ENVIRONMENT or not condemns(code):
            self._fail_now(code, detail)
            return
        log.warning("%s: its environment is verified before this is held against it: %s: %s", self, code, detail)
        self._suspect = True
        self._become("loading")
        self.hand_back()

        def told(found: Finding) -> None:
            self._suspect = False
            if not self._retired:
                self._fail_now(found.code or code, (found.detail or detail)[:DETAIL_CHARACTERS_MAX])

        suspicion.verify(self._bench.folder.environment(self.target.environment), told)

    def _fail_now(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        self._resumes = False
        self.failed_at = self._loop.time()
        log.error("%s has failed: %s: %s", self, code, self.detail)
        self._become("failed")
        self.hand_back()

    def _become(self, state: SlotState) -> None:
        if state != self.state:
            log.info("%s is %s", self, state)
        self.state = state
        self._pipeline.changed(self)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
