"""One device in a world that fails in every way it may: a simulator that speaks the core's real interface, from one seed.

Documents come late, twice, out of order or never; the agent is killed between any two commands and starts again from the
last record it saved; the gateway restarts from that record; the whole machine starts anew; fetches fail; bits rot; the clock
is set. After every write and every switch the invariants are checked. `calm` ends the faults, and `settled` says whether the
device is where `assign` wants it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from holdfast_agent.core import acceptance, events, step
from holdfast_agent.core.commands import (
    CollectGarbage,
    Command,
    Save,
    Spool,
    StartFetch,
    StopFetch,
    Tell,
    VerifySlots,
    WakeAt,
)
from holdfast_agent.core.device import Device, Goal
from holdfast_agent.core.events import Moment
from holdfast_agent.core.intent import decision_of, goal_of, view_of
from holdfast_agent.core.record import PipelineRecord, State
from holdfast_gateway.control import (
    Routes,
    ToGateway,
)
from holdfast_shared.assign import Decision, Target, condemned
from holdfast_shared.wire.assignment import Assignment
from holdfast_shared.wire.release import Release
from support.drawn_documents import ENVIRONMENTS, NAMES, drawn_document
from support.playbook import (
    BEGAN,
    PIPELINE,
    SECOND,
    digest,
    own,
    release,
    signed,
)
from support.simulated_gateway import SimulatedGateway

# How each release behaves on this device: most are good.
CONDUCTS: Final = ("good", "good", "good", "null-output", "crash-loop", "self-test-failed")
# How those of the environments that are not the device's own behave, whatever runs in them.
ENVIRONMENT_CONDUCTS: Final = ("good", "good", "good", "null-output", "self-test-failed")
KILLED_A_COMMAND: Final = 0.004
CALM_S: Final = 2 * 86_400
VERIFY_S: Final = 120.0


class Killed(Exception):
    """The agent's process is gone, between two commands."""


class World:
    """`turn` lets one thing happen. Everything is drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.own = own(health_s=30.0, verify_s=VERIFY_S)
        self.now = BEGAN
        self.conducts = {name: self.random.choice(CONDUCTS) for name in NAMES}
        self.environments: dict[str, str] = {one: self.random.choice(ENVIRONMENT_CONDUCTS) for one in ENVIRONMENTS}
        self.saved = step.first_record("0123456789abcdef")
        self.disk: set[str] = set()
        self.rotten: set[str] = set()  # on the disk, and not what it was
        self.rotted = 0
        self.boots = 1
        self.reading: frozenset[str] | None = None
        self.documents: list[Assignment] = []
        self.fetching: Target | None = None
        self.wake_us = 0
        self.calm = False
        self.decided = False  # the director says nothing new
        self.device: Device | None = None
        self._kills_between: list[int] = []
        self._orders: dict[tuple[str, str], tuple[int, int]] = {}
        self._numbers: set[int] = set()
        self._served = False
        self._gateway_boots = 1
        self.gateway: SimulatedGateway | None = SimulatedGateway(self, 1)
        self.connected = False
        self.start()

    # What may happen.

    def turn(self) -> None:
        if self.saved_pipeline.state is State.TRIAL and self.random.random() < 0.03:  # minds are changed in trials
            self.publish()
            self._receive(self.documents[-1])
            return
        if self.saved_pipeline.requests is not None and self.random.random() < 0.1:  # bits rot in those that last
            self.rot()
            return
        if self.saved_pipeline.trial_starts and self.random.random() < 0.2:  # a machine that fell over falls over again
            self.boot()
            return
        happen = self.random.choices(
            [self.publish, self.deliver, self.end_fetch, self.gateway_works, self.gateway_speaks, self.gateway_answers,
             self.time_goes_by, self.kill_agent, self.kill_gateway, self.disconnect, self.set_clock,
             self.rot, self.read, self.boot],
            weights=[1.3, 6, 10, 14, 50, 6, 16, 0.6, 0.3, 0.5, 0.5, 0.3, 4, 0.3],
        )[0]  # fmt: skip
        happen()

    def publish(self) -> None:
        """The director's next document; what serves is condemned more often than the rest."""
        if self.decided:
            return
        self.documents.append(drawn_document(self.random, len(self.documents) + 1, self.saved_pipeline))

    def deliver(self) -> None:
        """Any document that was ever published: late, twice, or the newest."""
        if self.documents:
            newest = self.random.random() < 0.5
            self._receive(self.documents[-1] if newest else self.random.choice(self.documents))

    def end_fetch(self) -> None:
        if self.fetching is None:
            return
        done, self.fetching = self.fetching, None
        ok = self.calm or self.random.random() < 0.7
        if ok:
            self.disk |= done.digests
            self.rotten -= done.digests
        self.happened(
            events.FetchEnded(
                pipeline=PIPELINE,
                target=done,
                ok=ok,
                draw=self.random.random(),
                code="" if ok else "fetch-unreachable",
                release=self.manifest(done.release.digest) if ok else None,
            )
        )

    def gateway_works(self) -> None:
        if self.gateway is not None:
            self.gateway.work()

    def gateway_answers(self) -> None:
        if self.gateway is not None:
            self.gateway.answer()

    def gateway_speaks(self) -> None:
        """The next thing the gateway has said arrives."""
        if self.gateway is None:
            self._gateway_boots += 1
            self.gateway = SimulatedGateway(self, self._gateway_boots)
        elif self.device is not None and not self.connected:
            self.connected = True
            self.gateway.sent.clear()
            self.gateway.sent.append(self.gateway.status())
            self.happened(events.GatewayConnected())
        elif self.connected and self.gateway.sent:
            self.happened(events.GatewaySaid(self.gateway.sent.popleft()))

    def time_goes_by(self) -> None:
        """To the next wake-up, or a little way there."""
        ahead = max(self.wake_us - self.now.monotonic_us, 0)
        passed = ahead if self.calm or self.random.random() < 0.6 else self.random.randint(0, max(ahead, 1))
        self.now = Moment(at=self.now.at + passed, monotonic_us=self.now.monotonic_us + passed)
        self.happened(events.Tick())

    def rot(self) -> None:
        """A bit of something on the disk flips: nobody knows until somebody reads it."""
        if self.disk:
            self.rotten.add(self.random.choice(sorted(self.disk)))
            self.rotted += 1

    def read(self) -> None:
        """The reading of the slots is done; now and then the system refuses to have one read."""
        if self.reading is None:
            return
        asked, self.reading = self.reading, None
        refused = {one: "refused" for one in asked if not self.calm and self.random.random() < 0.1}
        damaged = frozenset(one for one in asked if one in self.rotten or one not in self.disk) - refused.keys()
        whole = asked - damaged - refused.keys()
        draw = self.random.random()
        self.happened(events.SlotsVerified(whole=whole, damaged=damaged, draw=draw, unreadable=refused))

    def boot(self) -> None:
        """The machine starts: no process is left, the monotonic clock begins anew, the other may have been lost."""
        self.boots += 1
        self.own = replace(self.own, boot=f"boot-{self.boots}")
        self.gateway = None
        lost_us = 0 if self.random.random() < 0.7 else 86_400 * SECOND
        at = max(self.now.at + 5 * SECOND - lost_us, BEGAN.at - 86_400 * SECOND)
        self.now = Moment(at=at, monotonic_us=self.random.randint(1, 60) * SECOND)
        self.kill_agent()

    def kill_agent(self) -> None:
        self._ended()
        self.start()

    def kill_gateway(self) -> None:
        self.gateway = None
        self.disconnect()

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.happened(events.GatewayGone())

    def set_clock(self) -> None:
        jump = self.random.choice((-86_400, -60, 60, 3600)) * SECOND
        self.now = Moment(at=max(self.now.at + jump, BEGAN.at - 86_400 * SECOND), monotonic_us=self.now.monotonic_us)

    # The agent's process.

    def start(self) -> None:
        while self.device is None:
            known = {slot.release.digest: self.manifest(slot.release.digest) for slot in self.saved_pipeline.held}
            self._carry_out(step.resume(self.own, self.saved, known, self.now))

    def happened(self, event: events.Event) -> None:
        assert self.device is not None
        self._carry_out(step.step(self.device, event, self.now))
        self.start()

    def _carry_out(self, taken: step.Step) -> None:
        self.device = taken.device
        try:
            for command in taken.commands:
                self._maybe_killed()
                self._do(command)
            self._maybe_killed()
        except Killed:
            self._ended()

    def _ended(self) -> None:
        self.device, self.connected, self.fetching, self.reading = None, False, None, None

    def _maybe_killed(self) -> None:
        if not self.calm and self.random.random() < KILLED_A_COMMAND:
            raise Killed

    def _do(self, command: Command) -> None:
        match command:
            case Save(record):
                before, self.saved = self.saved_pipeline, record
                self._check_saved(before)
            case Tell(message):
                if self.connected and self.gateway is not None:
                    self._check_told(message)
                    self.gateway.hear(message)
            case StartFetch(target=wanted):
                assert self.fetching is None, "one fetch at a time"
                self.fetching = wanted
            case StopFetch():
                self.fetching = None
            case CollectGarbage(keep):
                assert self.fetching is None, "garbage is never collected under a fetch"
                self.disk &= keep
                self.rotten &= keep
                self._check_disk()
            case Spool(report=report):
                assert report.number not in self._numbers, "a number is used once"
                self._numbers.add(report.number)
            case VerifySlots(releases):
                self.reading = releases
            case WakeAt(monotonic_us):
                self.wake_us = monotonic_us

    # What must hold.

    def _check_saved(self, before: PipelineRecord) -> None:
        assert self.device is not None
        pipeline = self.saved_pipeline
        self._check_disk()
        if self._served:
            assert pipeline.serving is not None, "once it served, it always serves"
        self._served = self._served or pipeline.serving is not None
        documents = acceptance.parsed_documents(self.own, self.saved).get(PIPELINE, ())
        if pipeline.serving != before.serving and pipeline.serving is not None:
            view = view_of(self.device, PIPELINE)
            assert not condemned(documents, view, pipeline.serving), (
                f"{pipeline.serving} is condemned and was activated"
            )
            assert pipeline.activations[-1].target == pipeline.serving, "each activation is on record"
        refuge, view = pipeline.refuge, view_of(self.device, PIPELINE)
        assert refuge is None or not condemned(documents, view, refuge), (
            "a gateway that starts alone asks nothing condemned"
        )
        for one in self.saved.documents:
            key, order = (one.scope, one.pipeline), (one.epoch, one.seq)
            assert order >= self._orders.get(key, (0, 0)), "an order never decreases"
            self._orders[key] = order

    def _check_told(self, message: ToGateway) -> None:
        """The record was saved before anything follows from it."""
        if isinstance(message, Routes):
            told = next((route.serving for route in message.routes), None)
            assert told == self.saved_pipeline.serving, "the gateway is told what the record says"

    def _check_disk(self) -> None:
        shadow = self.saved_pipeline.shadow
        for slot in (*self.saved_pipeline.held, *((shadow,) if shadow is not None else ())):
            assert slot.digests <= self.disk, f"{slot} is in a slot and not on disk"

    def check_served(self, served: Target) -> None:
        assert served.digests <= self.disk, "what serves has verified bytes"

    # Without faults.

    def calm_down(self) -> None:
        """Faults off, the newest document delivered, everything answered; until nothing moves for a while."""
        self.calm = True
        if not self.documents:
            self.publish()
        self.deliver_newest()
        end_us = self.now.monotonic_us + CALM_S * SECOND
        while self.now.monotonic_us < end_us and not self.settled:
            self.calm_turn()

    def calm_turn(self) -> None:
        """Whatever waits for anything gets it."""
        for _ in range(4):
            self.gateway_speaks()
        self.gateway_works()
        self.read()
        self.end_fetch()
        self.gateway_answers()
        while self.connected and self.gateway is not None and self.gateway.sent:
            self.gateway_speaks()
        self.time_goes_by()

    def deliver_newest(self) -> None:
        self._receive(self.documents[-1])

    @property
    def settled(self) -> bool:
        """Idle or shadowed, nothing else missing, and the gateway serves what the record says, if that can be served at all."""
        assert self.device is not None
        pipeline = self.device.record.pipeline(PIPELINE)
        decision = decision_of(self.device, PIPELINE)
        missing = goal_of(self.device, PIPELINE, decision)
        if pipeline.state is State.SHADOWING:
            if missing is None or missing != Goal("shadow", missing.target) or pipeline.candidate != missing.target:
                return False
        elif pipeline.requests is not None:
            return self._shares(decision)
        elif decision.requests is not None and pipeline.current is None and not decision.urgent:
            return pipeline.state is State.IDLE  # a first release cannot have a share: it waits
        elif pipeline.state is not State.IDLE or (missing is not None and not self._fails_as_shadow(missing)):
            return False
        if decision.serve is not None and decision.serve != pipeline.current:
            return False
        if any(self.rotten & slot.digests for slot in pipeline.held):
            return False  # it will be read, and mended
        served = self.gateway.serving if self.gateway is not None else None
        hopeless = self.device.gateway.failed(PIPELINE, pipeline.current)
        confirmed = self.device.live_of(PIPELINE).confirmed
        return hopeless or (served == pipeline.current == confirmed)

    def _fails_as_shadow(self, missing: Goal) -> bool:
        """The refuge, which is not condemned for it: it is tried again, ever less often."""
        bad = self.conduct(missing.target) in ("crash-loop", "self-test-failed")
        return missing.purpose == "shadow" and missing.target == self.saved_pipeline.previous and bad

    def _shares(self, decision: Decision) -> bool:
        """The trial of the share that is wanted, which lasts; what rotted meanwhile is mended beside it."""
        assert self.device is not None
        pipeline = self.device.record.pipeline(PIPELINE)
        served = self.gateway.serving if self.gateway is not None else None
        if any(self.rotten & slot.digests for slot in pipeline.held) or self.device.live_of(PIPELINE).goal is not None:
            return False
        return (pipeline.candidate, pipeline.requests) == (
            decision.serve,
            decision.requests,
        ) and served == pipeline.candidate == self.device.live_of(PIPELINE).confirmed

    @property
    def saved_pipeline(self) -> PipelineRecord:
        return self.saved.pipeline(PIPELINE)

    def conduct(self, one: Target) -> str:
        """An environment that fails, fails every release; a good one leaves each as it is."""
        found = self.environments.get(one.environment, "good")
        return found if found != "good" else self.conducts[one.release.version.split(".")[1]]

    def manifest(self, wanted: str) -> Release:
        return release(next(name for name in NAMES if digest(name) == wanted))

    def _receive(self, document: Assignment) -> None:
        self.happened(events.DocumentReceived(scope="region/eu", pipeline=PIPELINE, envelope=signed(document)))
