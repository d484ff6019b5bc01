"""The playbook's device with a second pipeline, `q`, of releases 5, 6, 7. What each requires of the other is the test's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from holdfast_agent.core import events
from holdfast_agent.core.commands import Command
from holdfast_agent.core.record import PipelineRecord
from holdfast_gateway.control import SlotState, SlotStatus, Status, Tallied
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Condemned, Rule
from holdfast_shared.wire.release import Release, Requirement
from support.playbook import PIPELINE, Playbook, assignment, counts, release, rule, target

Q: Final = "q"


def requires(pipeline: str, at_least: str, below: str | None = None) -> Requirement:
    """By the releases' digits."""
    return Requirement(
        pipeline=pipeline, at_least=f"1.{at_least}.0", below=f"1.{below}.0" if below is not None else None
    )


class TwoPipelines(Playbook):
    """`needs` are the requirements of releases, by their digits."""

    def __init__(self, needs: Mapping[str, Requirement]) -> None:
        self.needs = needs
        self.q_workers: dict[str, SlotState] = {}
        self._q_seq = 0
        super().__init__()
        self.connect()

    def manifest(self, name: str) -> Release:
        wanted = (self.needs[name],) if name in self.needs else ()
        return msgspec.structs.replace(release(name), pipeline=Q if name >= "5" else PIPELINE, requires=wanted)

    def fetched(self, name: str, *, manifest: Release | None = None) -> list[Command]:
        return super().fetched(name, manifest=manifest or self.manifest(name))

    def status(
        self, states: Mapping[str, SlotState], *, serial: int | None = None, code: str = "", losses: int = 0
    ) -> list[Command]:
        """As of one pipeline, and q's workers as they last were."""
        workers = [(PIPELINE, name, state) for name, state in states.items()]
        workers += [(Q, name, state) for name, state in self.q_workers.items()]
        slots = tuple(
            SlotStatus(
                pipeline=pipeline,
                target=target(name),
                state=state,
                code=code if state == "failed" else "",
                losses=losses,
            )
            for pipeline, name, state in workers
        )
        self.in_force = self.device.gateway.serial if serial is None else serial
        return self.said(Status(serial=self.in_force, slots=slots, gateway=self.gateway))

    def to_idle(self, name: str) -> None:
        """The release takes over from one that is condemned: no trial."""
        self.fetched(name)
        self.ready(name)
        self.ready(name)
        assert (self.pipeline.state, self.pipeline.current) == ("idle", target(name)), self.pipeline

    def q_assigned(self, *rules: Rule, condemned: Sequence[Condemned] = ()) -> list[Command]:
        self._q_seq += 1
        return self.document(assignment(*rules, seq=self._q_seq, condemned=condemned, pipeline=Q))

    def q_fetched(self, name: str) -> list[Command]:
        found = self.manifest(name)
        return self.play(events.FetchEnded(pipeline=Q, target=target(name), ok=True, draw=0.5, release=found))

    def q_to_trial(self, name: str, *p_ready: str) -> None:
        self.q_fetched(name)
        self.q_workers[name] = "ready"
        self.ready(*p_ready)
        self.ready(*p_ready)
        assert self.q.state == "trial", self.q

    def q_serve(self, name: str, *p_ready: str) -> None:
        """From a document to a committed release; `p_ready` are the other pipeline's workers meanwhile."""
        self.q_assigned(rule(name))
        self.q_to_trial(name, *p_ready)
        self.q_tally(name, nulls=0)
        self.wait(11)
        assert self.q.current == target(name), self.q
        self.ready(*p_ready)

    def q_tally(self, name: str, *, nulls: int) -> list[Command]:
        window = msgspec.structs.replace(counts(name, requests=50, nulls=nulls), pipeline=Q)
        return self.said(
            Tallied(pipeline=Q, target=target(name), window=window, first_bad_monotonic_us=self.now.monotonic_us)
        )

    @property
    def q(self) -> PipelineRecord:
        return self.device.record.pipeline(Q)

    @property
    def both(self) -> tuple[str, str]:
        """What serves of p and of q, by their digits."""
        return _digit(self.pipeline.serving), _digit(self.q.serving)


NEWER_Q: Final = {"2": requires(Q, "6")}


def both_served(needs: Mapping[str, Requirement]) -> TwoPipelines:
    """p serves 1, q serves 5."""
    device = TwoPipelines(needs)
    device.q_serve("5")
    device.serve("1")
    return device


def both_newer(needs: Mapping[str, Requirement] = NEWER_Q) -> TwoPipelines:
    """p serves 2, which requires the 6 that q serves; 1 and 5 are their refuges."""
    device = both_served(needs)
    device.q_serve("6", "1")
    device.serve("2")
    assert device.both == ("2", "6")
    return device


def both_on_trial() -> TwoPipelines:
    """The same, and neither is committed yet."""
    device = both_served(NEWER_Q)
    device.q_assigned(rule("6"), rule("5"))
    device.q_to_trial("6", "1")
    device.assigned(rule("2"), rule("1"))
    device.to_trial("2")
    assert (device.both, device.q.state) == (("2", "6"), "trial")
    return device


def _digit(slot: Target | None) -> str:
    return slot.release.version.split(".")[1] if slot is not None else ""
