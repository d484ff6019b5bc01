"""The running agent: every edge made, the loop between them, and all of it ended again."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from holdfast_agent.core.device import Own
from holdfast_agent.edge import blobs, clock, configuration, identity, time_zone
from holdfast_agent.edge.broker import BrokerSession
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.edge.fetching import FetchProcess
from holdfast_agent.edge.gateway_control import ControlClient
from holdfast_agent.edge.identity import Identity
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.local_control import LocalControl
from holdfast_agent.edge.locks import LEFT_BEHIND_S
from holdfast_agent.edge.loop import Inbox, Loop
from holdfast_agent.edge.outbox import Outbox
from holdfast_agent.edge.polling import AssignmentPoll
from holdfast_agent.edge.record_file import RecordFile
from holdfast_agent.edge.spool import Spool
from holdfast_agent.edge.verifying import SlotVerifier
from holdfast_shared import __version__
from holdfast_shared.wire.release import Release
from holdfast_worker import installed

log: Final = logging.getLogger(__name__)


class ReleasesOnDisk:
    """The releases under a state directory. Without a verifier, as on one errand, nothing is read again."""

    def __init__(self, folder: StateFolder, verifier: SlotVerifier | None = None) -> None:
        self._folder, self._verifier = folder, verifier

    def release_of(self, digest: str) -> Release | None:
        return blobs.release_of(self._folder, digest)

    def collect_garbage(self, keep: Collection[str]) -> None:
        deleted = blobs.collect_garbage(self._folder, keep)
        if deleted:
            log.info("deleted %d file(s) that no slot names", deleted)

    def verify(self, releases: Collection[str]) -> None:
        if self._verifier is not None:
            self._verifier.start(releases)


def run(path: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises HoldfastError before anything starts, OSError when the record cannot be saved."""
    found = configuration.load(path)
    own = identity.load(found)
    inbox = Inbox()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *_: inbox.stop())
    with RecordFile(found.folder, wait_s=LEFT_BEHIND_S) as records, ExitStack() as ending:
        record = records.load()
        broker = _broker(found, own, inbox)
        spool = Spool(found.folder.spool, found.agent.spool_reports_max)
        ending.callback(spool.close)
        fetcher = FetchProcess(path, inbox.emit, deadline_s=found.fetch.deadline_s)
        ending.callback(fetcher.stop)
        verifier = SlotVerifier(found.folder, inbox.emit)
        ending.callback(verifier.stop)
        gateway = ControlClient(found.folder.control_socket, inbox.emit)
        poll = AssignmentPoll(
            url=found.server.url,
            region=own.membership.region,
            device=own.membership.device,
            poll_s=found.server.poll_s,
            emit=inbox.emit,
        )
        loop = Loop(
            inbox=inbox,
            records=records,
            data_plane=gateway,
            fetcher=fetcher,
            outbox=Outbox(spool, broker, fleet=own.membership.fleet, device=own.membership.device, key=own.key),
            disk=ReleasesOnDisk(found.folder, verifier),
            clock=clock.now,
            fleet=own.membership.fleet,
        )
        for edge in (gateway, broker, poll, LocalControl(found.folder.agent_socket, inbox.emit)):
            edge.start()
            ending.callback(edge.stop)
        log.info("agent %s of %s in %s starts", own.membership.device, own.membership.fleet, own.membership.region)
        loop.run(own_of(found, own), record)
        log.info("agent %s stops; its gateway serves on", own.membership.device)


def own_of(found: Configuration, known: Identity) -> Own:
    """What the core knows of this device from the outset."""
    return Own.of(
        known.membership,
        known.authorities,
        boot=clock.boot_id(),
        agent_version=__version__,
        health_s=found.agent.health_s,
        verify_s=found.agent.verify_s,
        zone=time_zone.load(found.device.time_zone),
        download=found.fetch.windows,
        machine=installed.machine(found.device.accelerators).facts,
        verify_draw=random.random(),  # noqa: S311 - spreads a fleet's readings; nobody gains by guessing it
    )


def _broker(found: Configuration, own: Identity, inbox: Inbox) -> BrokerSession:
    return BrokerSession(
        url=found.broker.url,
        fleet=own.membership.fleet,
        device=own.membership.device,
        region=own.membership.region,
        keepalive_s=found.broker.keepalive_s,
        emit=inbox.emit,
    )
