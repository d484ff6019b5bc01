"""A shadow's counts over more than 72 hours: the gateway's own ledger, the device's core, and a world in which agent and gateway
start anew, reports are lost before the gateway hears of them, and the wall clock jumps by days.

The server takes each window once, by its number: so summed, they are exactly what was asked, less only what a gateway that died
had told nobody yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from holdfast_agent.core.commands import Command, Spool, Tell
from holdfast_gateway.control import AcknowledgeWindows, CloseWindows
from holdfast_gateway.windows import Ledger
from holdfast_shared.wire.report import ShadowCounts
from holdfast_worker.protocol import Compared, Outcome
from support.playbook import BEGAN, PIPELINE, SECOND, Playbook, assignment, own, release, rule, target

HOURS = 80
DAY_S = 86_400
LATER = BEGAN.at + 400 * DAY_S * SECOND


class World:
    """`asked` and `agreed` are counted here by hand, beside everything that is tested."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.device = Playbook(own_=own(health_s=300))
        self.device.connect()
        self.device.serve("1")
        self.device.document(assignment(rule("2", "shadow"), rule("1"), seq=20, not_after=LATER))
        self.device.fetched("2")
        self.device.shadows("2")
        self.gateways = 1
        self.restarts = self.jumps = self.unheard = 0
        self.asked = self.dropped = self.agreed = 0
        self.lost = ShadowCounts()
        self._begin_gateway()

    def turn(self) -> None:
        for _ in range(self.random.randrange(4)):
            self._ask()
        self.follow(self.device.wait(self.random.uniform(1, 200)))
        chance = self.random.random()
        if chance < 0.01:
            self.restart_agent()
        elif chance < 0.015:
            self.restart_gateway()
        elif chance < 0.025:
            self.jumps += 1
            days = self.random.choice((-40, -3, -1, 1, 3, 40))
            now = self.device.now
            self.device.now = type(now)(at=max(now.at + days * DAY_S * SECOND, 0), monotonic_us=now.monotonic_us)

    def _ask(self) -> None:
        """Of one request: answered and agreeing or not, crashed at, or never asked."""
        shadow, what = (
            self.ledger.counts_of(PIPELINE, target("2"), wall_us=self.device.now.at).shadow,
            self.random.random(),
        )
        self.asked += 1
        if what < 0.1:
            self.dropped += 1
            shadow.dropped()
        elif what < 0.15:
            shadow.lost(hang=what < 0.12)
        else:
            agreed = int(what < 0.9)
            self.agreed += agreed
            told = Compared(id=1, outcome=Outcome.OK, compute_us=900, rows=1, agreed=agreed, difference=0)
            shadow.compared(told, 1000)

    def follow(self, commands: Sequence[Command]) -> None:
        """As the loop and the gateway do; now and then the agent dies between a report and its acknowledgement."""
        for command in commands:
            match command:
                case Tell(CloseWindows()):
                    self.ledger.close(wall_us=self.device.now.at)
                    self.follow(self.device.windows(*self.ledger.closed))
                case Tell(AcknowledgeWindows(windows=numbers)):
                    self.ledger.acknowledge(numbers)
                case Spool(windows=numbers) if numbers:
                    if self.random.random() < 0.1:
                        self.unheard += 1
                        self.restart_agent()
                        return
                    self.ledger.acknowledge(numbers)

    def restart_agent(self) -> None:
        """What the gateway still has comes again; what only a dead one had told is lost with the agent that had heard it."""
        self.restarts += 1
        first = self.device.record.windows_from
        for number, window in self.device.device.desk.windows.items():
            if number < first and window.shadow is not None:
                self.lost = added(self.lost, window.shadow)
        self.follow(self.device.start(release("1"), release("2")))
        self._connect()

    def restart_gateway(self) -> None:
        """It dies, with all that it had told nobody."""
        known = {*self.reported(), *self.device.device.desk.windows}
        first = self.device.record.windows_from
        held = [one.shadow for one in self.ledger.closed if first + one.window not in known]
        counts = self.ledger.counts_of(PIPELINE, target("2"), wall_us=0)
        for part in (*held, counts.shadow.taken()):
            if part is not None:
                self.lost = added(self.lost, part)
        self.gateways += 1
        self.device.gateway = f"gateway-{self.gateways}"
        self._begin_gateway()
        self._connect()

    def _begin_gateway(self) -> None:
        self.ledger = Ledger()

    def _connect(self) -> None:
        self.follow(self.device.connect())
        self.follow(self.device.shadows("2"))
        self.follow(self.device.windows(*self.ledger.closed))

    def reported(self) -> dict[int, ShadowCounts]:
        """By window number, as a server has them: the first report of each, and no other says anything else."""
        found: dict[int, ShadowCounts] = {}
        for window in (one for report in self.device.reports for one in report.windows if one.shadow is not None):
            assert window.shadow is not None
            assert found.setdefault(window.window, window.shadow) == window.shadow
        return found


def added(one: ShadowCounts, other: ShadowCounts) -> ShadowCounts:
    fields = ("requests", "dropped", "errors", "compared", "agreed")
    return ShadowCounts(**{name: getattr(one, name) + getattr(other, name) for name in fields})


@pytest.mark.parametrize("seed", range(6))
def test_windows_of_more_than_72_hours_are_exactly_what_was_asked(seed: int) -> None:
    world = World(seed)
    end_us = world.device.now.monotonic_us + HOURS * 3600 * SECOND
    while world.device.now.monotonic_us < end_us:
        world.turn()
    for _ in range(3):  # what is open is told with the next reports
        world.follow(world.device.wait(301))
    total = world.lost
    for part in world.reported().values():
        total = added(total, part)
    assert total.requests + total.dropped == world.asked
    assert (total.dropped, total.agreed) == (world.dropped, world.agreed)
    assert world.device.pipeline.state == "shadowing"
    assert min(world.restarts, world.gateways - 1, world.jumps, world.unheard) > 0
    assert world.lost.requests < world.asked / 50
