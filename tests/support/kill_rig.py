"""One long life of a device in real processes, killed at random moments: its agent, gateway, fetch, a worker, or all of them.

A life has rounds. In each a document states what should serve: a release to install or to return to, one that answers null on
live traffic, a condemnation of what serves, a standby. Then comes a kill or several; after each the disk is read, and what
was killed is started again; at last the device must come to where the document wants it. Whatever is answered all the while
is compared with what that release answers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from holdfast_agent.core import record
from holdfast_agent.core.record import Record, State
from holdfast_agent.edge import blobs
from holdfast_shared import durable, signing, strict_json
from holdfast_shared.errors import Damaged
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX, TYPE, Assignment, Condemned, Rule
from holdfast_shared.wire.release import Guardrail, Limits, Trial
from support import digits_models, installed_release
from support.device_bench import DeviceBench
from support.device_surroundings import PIPELINE
from support.hostile_server import Behaviour, Turn, honest
from support.installed_release import Published
from support.kill_applications import IMAGES, Answers, Applications
from support.mosquitto import running_mosquitto
from support.zygote import Forked, Zygote

STRENGTHS: Final = (0.02, 0.05, 0.2, 0.5)
NULLS: Final = Guardrail(metric="null_rate", threshold=0.01, action="fall_back", requests_min=5, window_s=10)
# Of the seconds after a document, in which an install takes two on a quick machine.
KILL_WITHIN_S: Final = 1.2
KILLS_A_ROUND_MAX: Final = 9
FETCH_COMES_S: Final = 1.0
FETCH_LASTS_S: Final = 0.5
# The device gives up a release whose workers are lost four times in a minute, and one in whose trial the gateway starts three
# times: both rightly. A fetch that is lost often waits for minutes.
WORKER_KILLS_A_MINUTE_MAX: Final = 2
GATEWAY_KILLS_A_ROUND_MAX: Final = 2
FETCH_KILLS_A_ROUND_MAX: Final = 2
# Several devices share what may be two busy cores: what hangs for ever is found, what is slow is not taken for it.
CONVERGE_S: Final = 600.0
LIMITS: Final = Limits(deadline_ms=60_000, load_deadline_s=300)
HEALTH_S: Final = 10.0  # nobody here reads the reports
LOOK_EVERY_S: Final = 0.1
VICTIMS: Final = {"agent": 9, "fetch": 5, "worker": 2, "gateway": 1, "all": 2}

# What a start of agent or gateway imports.
MODULES: Final = (
    "holdfast_agent.main",
    "holdfast_agent.edge.assembly",
    "holdfast_gateway.main",
    "holdfast_gateway.gateway",
)
STOP_S: Final = 60.0


class Harmed(AssertionError):
    """The device broke a promise."""


class KillRig:
    """`live(kills)` is the whole life. Everything but the scheduler's own moods is drawn from the seed."""

    def __init__(self, seed: int, bench: DeviceBench, zygote: Zygote) -> None:
        self.bench, self._zygote, self._random = bench, zygote, random.Random(seed)
        self.processes: dict[str, Forked] = {}
        self.killed: Counter[str] = Counter()
        self.forbidden: frozenset[str] = frozenset()
        self.gateway_lives = 0
        self.gateway_answers = False  # as far as anybody knows: it was seen to, and was not killed since
        self.has_served = False
        self.expected: dict[str, Answers] = {}  # by version: what it answers to each of IMAGES
        self._good = [self._publish(f"1.{n}.0", digits_models.trained(one)) for n, one in enumerate(STRENGTHS)]
        self._worker_kills: list[float] = []
        self._bad = 0
        self.seen: Record | None = None  # as it last lay on the disk
        self._serving = self._good[0]

    def live(self, kills: int) -> Applications:
        """Raises Harmed as soon as a promise is broken."""
        with Applications(self) as asking:
            self.begin(asking)
            self.go_on(asking, kills)
        return asking

    def begin(self, asking: Applications) -> None:
        """Up to the first release that serves."""
        self._start("gateway")
        self._start("agent")
        self._round(self._serving, 0, asking, _serve(self._serving))

    def go_on(self, asking: Applications, kills: int) -> None:
        while self.killed.total() < kills:
            self._one_round(min(kills - self.killed.total(), KILLS_A_ROUND_MAX), asking)

    # -- what is stated

    def _one_round(self, kills_max: int, asking: Applications) -> None:
        pick, now = self._random.choice, self._serving
        other = pick([one for one in self._good if one is not now])
        kills = self._random.randint(1, kills_max)
        kind = self._random.choices(["serve", "bad", "condemn", "standby"], weights=[5, 2, 3, 2])[0]
        match kind:
            case "serve":
                self._round(other, kills, asking, _serve(other))
            case "bad":
                self._bad += 1
                bad = self._publish(f"2.{self._bad}.0", digits_models.nan_on_some(), soak_s=2, requests_min=40)
                self._round(now, kills, asking, _serve(bad), _serve(now), left=bad)
            case "condemn":
                condemned = Condemned(release=now.ref, incident="i-1")
                self._round(other, kills, asking, _serve(other), condemned=(condemned,), left=now)
            case "standby":
                rule = Rule(mode="serve", release=now.ref, standby=other.ref)
                self._round(now, kills, asking, rule)

    def _round(
        self,
        wanted: Published,
        kills: int,
        asking: Applications,
        *rules: Rule,
        condemned: tuple[Condemned, ...] = (),
        left: Published | None = None,
    ) -> None:
        self.forbidden = frozenset()
        self.bench.assign(*rules, condemned=condemned)
        gateway_kills = fetch_kills = 0
        for _ in range(kills):
            time.sleep(self._random.random() * KILL_WITHIN_S)  # the moment is the seed's
            victim = self._random.choices(list(VICTIMS), weights=list(VICTIMS.values()))[0]
            if victim in ("gateway", "all"):
                gateway_kills += 1
                victim = victim if gateway_kills <= GATEWAY_KILLS_A_ROUND_MAX else "agent"
            if victim == "fetch":
                fetch_kills += 1
                victim = victim if fetch_kills <= FETCH_KILLS_A_ROUND_MAX else "agent"
            self._kill(victim)
            self._no_fault(asking)
        self._converged(wanted, left, asking)

    def _publish(self, version: str, model: bytes, *, soak_s: int = 0, requests_min: int = 0) -> Published:
        trial = Trial(soak_s=soak_s, requests_min=requests_min)
        made = installed_release.publish(PIPELINE, version, model, guardrails=(NULLS,), trial=trial, limits=LIMITS)
        for digest, envelope in made.manifests.items():
            self.bench.files.on(f"/api/v1/manifests/{digest}", _unhurried(envelope))
        for digest, blob in made.blobs.items():
            self.bench.files.on(f"/api/v1/blobs/{digest}", _unhurried(blob))
        self.expected[version] = _answers(model)
        return made

    # -- who is killed

    def _kill(self, victim: str) -> None:
        agent, gateway = (self.processes[name].pid for name in ("agent", "gateway"))
        if victim == "fetch":
            self._await_fetch(agent)
        fetches, workers = _children(agent), _children(gateway)
        if victim == "worker" and (not workers or not self._may_lose_a_worker()):
            victim = "agent"
        if victim == "fetch" and not fetches:
            victim = "agent"
        match victim:
            case "agent":
                pids = [agent]
            case "fetch":
                pids = fetches[:1]
            case "worker":
                pids = [self._random.choice(workers)]
            case "gateway":
                pids = [gateway]
            case _:
                pids = [agent, gateway, *fetches, *workers]
        if gateway in pids:
            self.gateway_answers = False
            self.gateway_lives += 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a fetch or worker that was just done
                os.kill(pid, signal.SIGKILL)
        self.killed[victim] += 1
        for name in ("agent", "gateway"):
            if self.processes[name].pid in pids:
                self.processes[name].wait()
        self._check_disk()
        if gateway in pids:
            self.bench.state.gateway_addresses.unlink(missing_ok=True)
            self._start("gateway")
        if agent in pids:
            self._start("agent")

    def _await_fetch(self, agent: int) -> None:
        """Until there may be one, and then a moment of its short life."""
        deadline = time.monotonic() + FETCH_COMES_S
        while not _children(agent) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self._random.random() * FETCH_LASTS_S)

    def _may_lose_a_worker(self) -> bool:
        now = time.monotonic()
        self._worker_kills = [one for one in self._worker_kills if now - one < 60]
        if len(self._worker_kills) >= WORKER_KILLS_A_MINUTE_MAX:
            return False
        self._worker_kills.append(now)
        return True

    def _start(self, name: str) -> None:
        if name in self.processes:
            self.processes[name].close()
        log = self.bench.folder / f"{name}.log"
        arguments = ["run", "--config", str(self.bench.path)]
        self.processes[name] = self._zygote.start(f"holdfast_{name}.main", arguments, log)

    def close(self) -> None:
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        for process in self.processes.values():
            if not process.wait(STOP_S):
                process.signal(signal.SIGKILL)
            process.close()

    # -- what must hold

    def _check_disk(self) -> None:
        """From the device's own disk: what every slot names verifies, nothing went back, nothing condemned began to serve."""
        found = self._record()
        if found is None:
            return
        bad = [digest for digest in _slots(found) if _damaged(self.bench, digest)]
        if bad and _slots(found) == _slots(self._record() or found):  # else a live agent gave it up while we read
            raise Harmed(f"slots do not verify: {bad} of {found.pipeline(PIPELINE)}")
        if self.seen is not None:
            _check_nothing_went_back(self.seen, found)
            self._check_activations(self.seen, found)
        self.seen = found

    def _record(self) -> Record | None:
        with contextlib.suppress(Damaged):
            saved = durable.DoubledFile(self.bench.state.record).read()
            return record.decode(saved[1]) if saved is not None else None
        raise Harmed("no half of the record can be read")

    def _check_activations(self, before: Record, after: Record) -> None:
        old, new = before.pipeline(PIPELINE), after.pipeline(PIPELINE)
        known = set(map(repr, old.activations))
        here = {one.target.key for one in old.condemned_here} & {one.target.key for one in new.condemned_here}
        for one in (one for one in new.activations if repr(one) not in known):
            if one.target.key in here:
                raise Harmed(f"{one} was condemned here, and activated")
            if all(_condemned_in(each, one.target.release.digest) for each in (before, after)):
                raise Harmed(f"{one} was condemned by a document, and activated")

    def _converged(self, wanted: Published, left: Published | None, asking: Applications) -> None:
        deadline, images = time.monotonic() + CONVERGE_S, itertools.cycle(range(len(IMAGES)))
        while True:
            self._no_fault(asking)
            found = self._record()
            there = found is not None and self._is_there(found, wanted, left)
            if there and asking.ask(next(images)) == wanted.ref.version:
                break
            for name, process in self.processes.items():
                if not process.alive():
                    raise Harmed(f"the {name} ended by itself")
            if time.monotonic() > deadline:
                raise Harmed(f"{wanted.ref.version} should serve: {found and found.pipeline(PIPELINE)}")
            time.sleep(LOOK_EVERY_S)
        self._check_disk()
        self._serving, self.gateway_answers, self.has_served = wanted, True, True
        if left is not None:
            self.forbidden = frozenset({left.ref.version})
        self.bench.files.requests.clear()
        self.bench._reports.clear()

    def _is_there(self, found: Record, wanted: Published, left: Published | None) -> bool:
        pipeline = found.pipeline(PIPELINE)
        if pipeline.state is not State.IDLE or pipeline.current is None:
            return False
        seqs = [one.seq for one in found.documents]
        here = {one.target.release.digest for one in pipeline.condemned_here}
        is_bad = left is not None and left.ref.version.startswith("2.")
        return (
            pipeline.current.release == wanted.ref
            and seqs == [self.bench._seq]
            and (not is_bad or (left is not None and left.digest in here))
        )

    def _no_fault(self, asking: Applications) -> None:
        if asking.faults:
            raise Harmed("; ".join(asking.faults[:3]))


@contextlib.contextmanager
def running_rig(seed: int, folder: Path) -> Iterator[KillRig]:
    with running_mosquitto() as broker, contextlib.ExitStack() as stack:
        zygote = Zygote(MODULES)
        stack.callback(zygote.close)
        bench = DeviceBench(folder, broker, health_s=HEALTH_S)
        stack.callback(bench.close)
        rig = KillRig(seed, bench, zygote)
        stack.callback(rig.close)
        try:
            yield rig
        except Harmed as harm:
            for log in sorted(folder.glob("*.log")):
                harm.add_note(f"--- {log}\n{log.read_text()[-3000:]}")
            raise


def prepare() -> None:
    """Make the models once, before several lives want them at the same time."""
    for strength in STRENGTHS:
        _answers(digits_models.trained(strength))
    _answers(digits_models.nan_on_some())


@functools.cache
def _answers(model: bytes) -> Answers:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # else its threads go on turning
    session: Any = onnxruntime.InferenceSession(model, options)
    return np.array([session.run(["probabilities"], {"image": one.reshape(1, -1)})[0].ravel() for one in IMAGES])


def _serve(one: Published) -> Rule:
    return Rule(mode="serve", release=one.ref)


def _slots(found: Record) -> list[str]:
    pipeline = found.pipeline(PIPELINE)
    slots = (pipeline.current, pipeline.previous, pipeline.candidate if pipeline.state is State.TRIAL else None)
    return [one.release.digest for one in slots if one is not None]


def _damaged(bench: DeviceBench, digest: str) -> list[str]:
    return blobs.damaged(bench.state, digest)


def _check_nothing_went_back(before: Record, after: Record) -> None:
    orders = {(one.scope, one.pipeline): (one.epoch, one.seq) for one in before.documents}
    for one in after.documents:
        if (one.epoch, one.seq) < orders.get((one.scope, one.pipeline), (0, 0)):
            raise Harmed(f"the order of {one.scope} went back")
    for name in ("number", "boots", "windows_next"):
        if getattr(after, name) < getattr(before, name):
            raise Harmed(f"{name} went back from {getattr(before, name)} to {getattr(after, name)}")
    if before.incarnation != after.incarnation:
        raise Harmed("the record was begun anew")


def _condemned_in(found: Record, digest: str) -> bool:
    payloads = (
        signing.unverified_payload(one.envelope, TYPE, size_bytes_max=ENVELOPE_BYTES_MAX) for one in found.documents
    )
    documents = (
        strict_json.decode(one, Assignment, what="assignment", size_bytes_max=ENVELOPE_BYTES_MAX) for one in payloads
    )
    condemned = (entry.release for document in documents for entry in document.condemned)
    return any(one is not None and one.digest == digest for one in condemned)


def _children(pid: int) -> list[int]:
    """By any of its threads."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(one) for one in thread.read_text().split()]
    return found


def _unhurried(body: bytes) -> Behaviour:
    """Honest, and it takes a moment: so that somebody can be killed in it."""
    behave = honest(body)

    def in_pieces(turn: Turn) -> None:
        whole: list[bytes] = []
        behave(turn._replace(send=whole.append))
        raw = b"".join(whole)
        size = max(len(raw) // 4, 1)
        for start in range(0, len(raw), size):
            turn.send(raw[start : start + size])
            if turn.wait(0.02):
                return

    return in_pieces
