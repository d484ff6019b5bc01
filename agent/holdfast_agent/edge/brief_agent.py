"""The agent for one rollback, while no agent runs: the same core and the same loop, with the gateway and without any network.

Writing the record alone would not do: a gateway that runs reads it only at its start. What is to be reported goes into the
spool, and what else the core wants (a download, say) is left to the agent that starts next: it is derived anew.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import ExitStack
from typing import Final

from holdfast_agent.core.events import GatewaySaid
from holdfast_agent.core.record import Record, State
from holdfast_agent.edge import assembly, clock, identity
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.edge.gateway_control import ControlClient, ControlEvent
from holdfast_agent.edge.local_control import Answer, Rollback, RollbackRequested
from holdfast_agent.edge.loop import Inbox, Loop, RecordStore
from holdfast_agent.edge.outbox import Outbox
from holdfast_agent.edge.record_file import RecordFile
from holdfast_agent.edge.spool import Spool
from holdfast_gateway.control import Status

# For a gateway that is there to say what is loaded; without it, what is on the disk counts as good.
HEARD_S: Final = 2.0
# For the gateway to confirm; a slot that must be loaded first may take longer, and the next agent hears of it.
CONFIRM_S: Final = 15.0


def roll_back(found: Configuration, records: RecordFile, wanted: Rollback) -> Answer:
    """Do it, or say why not. The caller holds the record's lock. Raises what a start of the agent raises."""
    known = identity.load(found)
    errand = _Errand(wanted, records)
    with ExitStack() as ending:
        spool = Spool(found.folder.spool, found.agent.spool_reports_max)
        ending.callback(spool.close)
        gateway = ControlClient(found.folder.control_socket, errand.hear)
        loop = Loop(
            inbox=errand.inbox,
            records=errand,
            data_plane=gateway,
            fetcher=_NoFetch(),
            outbox=Outbox(
                spool, _NoBroker(), fleet=known.membership.fleet, device=known.membership.device, key=known.key
            ),
            disk=_KeepsAll(found.folder),
            clock=clock.now,
            fleet=known.membership.fleet,
        )
        gateway.start()
        ending.callback(gateway.stop)
        asking = threading.Timer(HEARD_S if found.folder.control_socket.exists() else 0.0, errand.ask)
        enough = threading.Timer(HEARD_S + CONFIRM_S, errand.inbox.stop)
        for timer in (asking, enough):
            timer.daemon = True
            timer.start()
            ending.callback(timer.cancel)
        loop.run(assembly.own_of(found, known), records.load())
    return errand.answer or Answer(refused="the request was not answered; see holdfast-agent status")


class _Errand(RecordStore):
    """Asks once the gateway was heard, and ends the loop when the pipeline has arrived where it was sent."""

    def __init__(self, wanted: Rollback, records: RecordFile) -> None:
        self.inbox = Inbox()
        self.answer: Answer | None = None
        self._wanted, self._records = wanted, records
        self._unasked = threading.Lock()
        self._heard = False

    def hear(self, event: ControlEvent) -> None:
        self.inbox.emit(event)
        if isinstance(event, GatewaySaid) and isinstance(event.message, Status):
            self._heard = True
            self.ask()

    def ask(self) -> None:
        """Once, whoever calls first."""
        if self._unasked.acquire(blocking=False):
            self.inbox.emit(RollbackRequested(request=self._wanted, answer=self._answered))

    def save(self, saved: Record) -> None:
        self._records.save(saved)
        if self.answer is not None and saved.pipeline(self._wanted.pipeline).state is not State.FALLING_BACK:
            self.inbox.stop()  # after the rest of this step, which is to be reported

    def _answered(self, answer: Answer) -> None:
        self.answer = answer
        if answer.refused or not self._heard:
            self.inbox.stop()


class _NoFetch:
    def start(
        self,
        target_digest: str,
        version: str,
        pipeline: str,
        environment: str,
        *,
        urgent: bool = False,
        from_disk: bool = False,
    ) -> None:
        """The next agent does."""

    def stop(self) -> None:
        """There is none."""


class _NoBroker:
    def publish(self, topic: str, payload: bytes, token: int) -> bool:  # noqa: ARG002 - Publisher's signature
        return False


class _KeepsAll(assembly.ReleasesOnDisk):
    """Deletes nothing: that can wait."""

    def collect_garbage(self, keep: Collection[str]) -> None:
        """The next agent does."""
