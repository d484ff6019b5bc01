"""A device's core, driven event by event: what comes in, what it wants done. No mocks, no sleeps: time is an argument.

`Playbook` is a device with keys of its own, in region `eu`, for pipeline `p`. Releases are named by one digit: "1" is 1.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from holdfast_agent.core import events, step
from holdfast_agent.core.commands import (
    Command,
    Save,
    Spool,
    WakeAt,
)
from holdfast_agent.core.device import Device, Own
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_gateway.control import FromGateway, SlotState, SlotStatus, Status, Switched, Tallied
from holdfast_gateway.control import Windows as WindowsSaid
from holdfast_shared import selector, signing, strict_json
from holdfast_shared.assign import Target
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.histogram import Histogram, bin_of
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import TYPE, Assignment, Condemned, Mode, ReleaseRef, Retry, Rule, Scope
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.release import Blob, Guardrail, ModelRef, Release, SelfTest, Stage, Trial
from holdfast_shared.wire.report import Event, PipelineReport, Report, Window

SECOND: Final = 1_000_000
PIPELINE: Final = "p"
BEGAN: Final = Moment(at=1_790_000_000 * SECOND, monotonic_us=1_000 * SECOND)

DIRECTOR: Final = PrivateKey.generate()
STRANGER: Final = PrivateKey.generate()


def digest(name: str) -> str:
    return f"sha256:{int(name):064x}"


def ref(name: str) -> ReleaseRef:
    name = name.partition("@")[0]
    return ReleaseRef(version=f"1.{name}.0", digest=digest(name))


def target(name: str) -> Target:
    """`2` is release 2 in the device's own environment, `2@7` the same one in environment 7."""
    place = name.partition("@")[2]
    return Target(release=ref(name), environment=digest(place) if place else SYSTEM_ENVIRONMENT)


def release(name: str, *, soak_s: int = 10, requests_min: int = 20, latency_ms: float = 100.0) -> Release:
    """A manifest with a guardrail of each counted metric."""

    def guardrail(metric: str, threshold: float) -> Guardrail:
        fields = {"metric": metric, "threshold": threshold, "action": "fall_back", "requests_min": 5, "window_s": 30}
        return msgspec.convert(fields, Guardrail)

    name = name.partition("@")[0]
    return Release(
        pipeline=PIPELINE,
        version=f"1.{name}.0",
        stages=(
            Stage(
                name="s",
                model=ModelRef(name="m", version=f"1.{name}.0", digest=digest(name)),
                inputs={"x": "request.x"},
            ),
        ),
        outputs={"y": "s.y"},
        self_test=SelfTest(
            blob=Blob(digest=digest(name), size_bytes=1), absolute_tolerance=0.0, relative_tolerance=0.0
        ),
        guardrails=(
            guardrail("latency_ms_p99", latency_ms),
            guardrail("error_rate", 0.01),
            guardrail("null_rate", 0.01),
        ),
        trial=Trial(soak_s=soak_s, requests_min=requests_min),
    )


def rule(name: str, mode: Mode = "serve", *, standby: str = "", match: str = "*", below: int = 10_000) -> Rule:
    return Rule(
        mode=mode,
        release=ref(name),
        environment=target(name).environment if "@" in name else None,
        standby=ref(standby) if standby else None,
        match=selector.parse(match),
        below=below,
        salt="r",
    )


def bad(name: str, match: str = "*") -> Condemned:
    return Condemned(release=ref(name), match=selector.parse(match), incident=f"incident-{name}")


def retry(name: str, attempt: int) -> Retry:
    return Retry(release=ref(name), attempt=attempt)


def assignment(
    *rules: Rule,
    seq: int,
    condemned: Sequence[Condemned] = (),
    retries: Sequence[Retry] = (),
    scope: Scope | None = None,
    epoch: int = 1,
    pipeline: str = PIPELINE,
    fleet: str = "f",
    critical: Sequence[str] = (),
    floor: str | None = None,
    not_after: int = BEGAN.at + 86_400 * SECOND,
) -> Assignment:
    return Assignment(
        fleet=fleet,
        scope=scope or Scope(region="eu"),
        pipeline=pipeline,
        epoch=epoch,
        seq=seq,
        issued_at=BEGAN.at,
        not_after=not_after,
        rules=rules,
        condemned=tuple(condemned),
        retry=tuple(retries),
        critical=tuple(critical),
        floor=floor,
    )


def signed(document: Assignment, key: PrivateKey = DIRECTOR) -> bytes:
    return signing.sign(strict_json.encode(document), TYPE, [key])


def authorities() -> Authorities:
    public = DIRECTOR.public.to_text()
    return Authorities(
        fleet="f",
        version=1,
        publishers=(Publisher(name="p", public_key=public),),
        directors=(Director(name="d", public_key=public, epoch=1),),
        enrolment=(Holder(name="e", public_key=public),),
        operators=(),
        approvers=(),
    )


def membership(region: str = "eu", device: str = "d-1") -> Membership:
    return Membership(
        fleet="f",
        device=device,
        region=region,
        counter=1,
        public_key=DIRECTOR.public.to_text(),
        issued_at=0,
        labels={"ring": "main"},
    )


def own(region: str = "eu", *, health_s: float = 60.0, verify_s: float = 86_400.0, verify_draw: float = 1.0) -> Own:
    return Own.of(
        membership(region),
        authorities(),
        boot="boot-1",
        agent_version="0.1.0",
        health_s=health_s,
        verify_s=verify_s,
        verify_draw=verify_draw,
    )


def counts(
    name: str, *, requests: int, errors: int = 0, nulls: int = 0, slow: int = 0, window: int = 0, at: int = BEGAN.at
) -> Window:
    """Counts of a slot: `slow` of the requests took a second, the others ten milliseconds."""
    bins = {bin_of(10.0): requests - slow, bin_of(1000.0): slow}
    return Window(
        window=window,
        pipeline=PIPELINE,
        release=ref(name),
        environment=target(name).environment,
        opened_at=at,
        closed_at=at,
        requests=requests,
        errors=errors,
        nulls=nulls,
        latency=Histogram(tuple((index, count) for index, count in sorted(bins.items()) if count)),
    )


class Playbook:
    """One device. Each method lets something happen, and returns what the device wants done, the wake-up left out."""

    def __init__(self, *, record: Record | None = None, own_: Own | None = None) -> None:
        self.own = own_ or own()
        self.now = BEGAN
        self.record = record or step.first_record("0123456789abcdef")
        self.wake_us = 0
        self.in_force = 0
        self.gateway = "gateway-1"
        self.reports: list[Report] = []
        self.device: Device
        self._seq = 0
        self.start()

    def start(self, *releases: Release) -> list[Command]:
        """A start of the agent from the last saved record, with the manifests that its disk has."""
        known = {digest(found.version.split(".")[1]): found for found in releases}
        return self._taken(step.resume(self.own, self.record, known, self.now))

    def play(self, event: events.Event) -> list[Command]:
        return self._taken(step.step(self.device, event, self.now))

    def wait(self, seconds: float) -> list[Command]:
        """Let time go by, waking up whenever the device asked for it."""
        end_us = self.now.monotonic_us + int(seconds * SECOND)
        done: list[Command] = []
        while self.wake_us <= end_us:
            assert self.wake_us > self.now.monotonic_us, "a wake-up that does not lie ahead is a busy loop"
            self._to(self.wake_us)
            done += self.play(events.Tick())
        self._to(end_us)
        return done

    def document(self, document: Assignment, *, key: PrivateKey = DIRECTOR) -> list[Command]:
        return self.envelope(signed(document, key), scope=document.scope.key, pipeline=document.pipeline)

    def envelope(self, raw: bytes, *, scope: str = "region/eu", pipeline: str = PIPELINE) -> list[Command]:
        return self.play(events.DocumentReceived(scope=scope, pipeline=pipeline, envelope=raw))

    def assigned(
        self, *rules: Rule, condemned: Sequence[Condemned] = (), retries: Sequence[Retry] = ()
    ) -> list[Command]:
        """The region's next document."""
        self._seq += 1
        return self.document(assignment(*rules, seq=self._seq, condemned=condemned, retries=retries))

    def connect(self) -> list[Command]:
        done = self.play(events.GatewayConnected())
        return done + self.said(Status(serial=0, slots=(), gateway=self.gateway))

    def said(self, message: FromGateway) -> list[Command]:
        return self.play(events.GatewaySaid(message))

    def ready(self, *names: str) -> list[Command]:
        """The gateway says that the routes last told are in force, and these releases' workers ready."""
        return self.status(dict.fromkeys(names, "ready"))

    def failed(self, name: str, code: str, *ready: str) -> list[Command]:
        """The worker of one failed for good; the routes last told are not in force."""
        states: dict[str, SlotState] = {name: "failed"}
        return self.status(states | dict.fromkeys(ready, "ready"), code=code, serial=self.in_force)

    def status(
        self, states: Mapping[str, SlotState], *, serial: int | None = None, code: str = "", losses: int = 0
    ) -> list[Command]:
        slots = tuple(
            SlotStatus(
                pipeline=PIPELINE,
                target=target(name),
                state=state,
                code=code if state == "failed" else "",
                losses=losses,
            )
            for name, state in states.items()
        )
        self.in_force = self.device.gateway.serial if serial is None else serial
        return self.said(Status(serial=self.in_force, slots=slots, gateway=self.gateway))

    def shadows(
        self, name: str, state: SlotState = "ready", *, code: str = "", detail: str = "", losses: int = 0
    ) -> list[Command]:
        """The gateway says this of the worker that shadows; what serves by the record is ready, and in force."""
        ready = [slot for slot in (self.pipeline.current, self.pipeline.previous) if slot is not None]
        said = [SlotStatus(pipeline=PIPELINE, target=one, state="ready") for one in ready]
        shadow = target(name)
        one = SlotStatus(pipeline=PIPELINE, target=shadow, state=state, code=code, detail=detail, losses=losses)
        self.in_force = self.device.gateway.serial
        return self.said(Status(serial=self.in_force, slots=tuple(said), gateway=self.gateway, shadows=(one,)))

    def tally(self, window: Window, first_bad_us: int | None = None) -> list[Command]:
        message = Tallied(
            pipeline=PIPELINE,
            target=Target(release=window.release, environment=window.environment),
            window=window,
            first_bad_monotonic_us=first_bad_us,
        )
        return self.said(message)

    def windows(self, *windows: Window) -> list[Command]:
        return self.said(WindowsSaid(windows=windows))

    def switched(self, name: str) -> list[Command]:
        return self.said(Switched(pipeline=PIPELINE, target=target(name), at_monotonic_us=self.now.monotonic_us))

    def fetched(self, name: str, *, manifest: Release | None = None) -> list[Command]:
        return self.play(
            events.FetchEnded(
                pipeline=PIPELINE, target=target(name), ok=True, draw=0.5, release=manifest or release(name)
            )
        )

    def not_fetched(self, name: str, code: str = "fetch-unreachable", draw: float = 0.5) -> list[Command]:
        return self.play(events.FetchEnded(pipeline=PIPELINE, target=target(name), ok=False, draw=draw, code=code))

    def serve(self, name: str, *, manifest: Release | None = None) -> None:
        """From a document to a committed release, everything going well. Needs a connected gateway."""
        self.assigned(rule(name))
        self.to_trial(name, manifest=manifest)
        self.tally(counts(name, requests=50))
        self.wait(11)
        assert self.pipeline.current == target(name), self.pipeline
        self.ready(name)

    def to_trial(self, name: str, *, manifest: Release | None = None) -> None:
        self.fetched(name, manifest=manifest)
        self.ready(name)
        self.ready(name)
        assert self.pipeline.state == "trial", self.pipeline

    @property
    def pipeline(self) -> PipelineRecord:
        return self.device.record.pipeline(PIPELINE)

    @property
    def slots(self) -> tuple[str, str, str]:
        """(current, previous, candidate) by their digits."""

        def digit(slot: Target | None) -> str:
            return slot.release.version.split(".")[1] if slot is not None else ""

        found = self.pipeline
        return digit(found.current), digit(found.previous), digit(found.candidate)

    def report(self) -> PipelineReport:
        """What the device says of the pipeline at its next health report."""
        before = len(self.reports)
        self.wait(self.own.health_us / SECOND + 1)
        assert len(self.reports) > before
        return self.reports[-1].pipelines[0]

    def events(self, kind: str = "") -> list[Event]:
        """All events ever reported, in order."""
        return [event for report in self.reports for event in report.events if kind in ("", event.kind)]

    def _to(self, monotonic_us: int) -> None:
        self.now = Moment(at=self.now.at + monotonic_us - self.now.monotonic_us, monotonic_us=monotonic_us)

    def _taken(self, taken: step.Step) -> list[Command]:
        self.device = taken.device
        commands = list(taken.commands)
        assert all(not isinstance(command, Save) for command in commands[1:]), "Save is the first command of its step"
        for command in commands:
            if isinstance(command, Save):
                self.record = command.record
            elif isinstance(command, Spool):
                self.reports.append(command.report)
            elif isinstance(command, WakeAt):
                self.wake_us = command.monotonic_us
        return [command for command in commands if not isinstance(command, WakeAt)]
