"""The thread that drives rollouts: looks at what devices said, asks the core, carries out what it decides.

It keeps nothing that the tables do not hold; a restarted one counts again and goes on. A look reads only what is new since
the last, and writes only when something was decided or, once a second, when a verdict moved.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection

from holdfast_server.core import rollout as machine
from holdfast_server.core.release_in import Taken
from holdfast_server.core.returning import Returning, observed
from holdfast_server.core.rollback import Rollback
from holdfast_server.core.rollback import State as RollbackState
from holdfast_server.core.rollout import ACTIVE, Judged, Moment, Rollout, State
from holdfast_server.core.standing import Condemnation
from holdfast_server.core.verdict import WaveVerdict
from holdfast_server.rollouts import commands, storage
from holdfast_server.rollouts.context import Context
from holdfast_server.rollouts.enactment import enact_step, recompose_all
from holdfast_server.rollouts.evidence import Evidence
from holdfast_server.rollouts.fleet import Fleet
from holdfast_server.store import changes
from holdfast_server.store.database import UNAVAILABLE
from holdfast_shared import selector

# With nothing new: deadlines and soaks are still looked at. With much new: no more looks than this, on a shared core.
TICK_S: Final = 0.5
GAP_S: Final = 0.2
# A verdict that only counts further is stored this often, for people who watch.
PROGRESS_US: Final = 1_000_000
# How long devices that have not come back are looked for. Later they come back all the same, unrecorded.
RETURNS_WATCHED_US: Final = 86_400 * 1_000_000
# How long after the last is back more are looked for: a device may have begun in the last moment, and say so late.
RETURNS_SETTLED_US: Final = 300 * 1_000_000
HOUSEKEEPING_US: Final = 60 * 1_000_000
_AFTER_FAULT_S: Final = 2.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

log: Final = logging.getLogger(__name__)


class Scheduler:
    """One a server: a second one would decide the same twice, and the core would call the second one late."""

    def __init__(self, context: Context, *, boot: str | None = None) -> None:
        self._context = context
        self._boot = boot if boot is not None else _BOOT.read_text(encoding="ascii").strip()
        self._woken = threading.Event()
        self._fleet = Fleet()
        self._fleet_version = -1
        self._housekept_at = 0
        self._counters: tuple[int, int] = (-1, -1)
        self._active: dict[str, Rollout] = {}
        self._condemned: dict[str, tuple[Condemnation, ...]] = {}
        self._evidence: dict[str, Evidence] = {}
        self._stored_at: dict[str, int] = {}
        self._returning: dict[str, Rollout | Rollback] = {}
        context.database.after_commit(self.wake)

    def wake(self) -> None:
        """Something was committed. From any thread."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. A fault of a look is logged and the next look tries again: nobody else would drive the rollouts."""
        while not stop.wait(GAP_S):
            try:
                self.tick()
            except UNAVAILABLE as error:
                log.warning("the database is away; the rollouts are looked at when it is back: %.300s", error)
                stop.wait(_AFTER_FAULT_S)
            except Exception:  # a bug; nobody else would drive the rollouts
                log.exception("a look at the rollouts failed")
                stop.wait(_AFTER_FAULT_S)
            self._woken.wait(TICK_S - GAP_S)
            self._woken.clear()

    def tick(self) -> None:
        """One look."""
        now = self._context.now()
        with self._context.database.read() as connection:
            changed = self._fleet.refresh(connection)
            reloaded = self._reload(connection, now)
            verdicts = [
                (record, found)
                for record in self._active.values()
                if (found := self._judge(connection, record, now)) is not None
            ]
        self._keep_house(now)
        for record, verdict in verdicts:
            self._act_on(record, verdict, now)
        if verdicts:  # who served what was just halted is in memory now, and may be gone from it a moment later
            with self._context.database.read() as connection:
                reloaded |= self._reload(connection, now)
        self._note_returns(self._fleet.devices.keys() if reloaded else changed, now)

    def _keep_house(self, now: Moment) -> None:
        """A new region gets its documents; a request that nobody approved is refused in the end."""
        if self._fleet.version == self._fleet_version and now.at - self._housekept_at < HOUSEKEEPING_US:
            return
        with self._context.database.write() as connection:
            recompose_all(connection, self._context, now, cause="composed again: nothing was decided")
            commands.refuse_overdue(connection, now)
        self._fleet_version, self._housekept_at = self._fleet.version, now.at

    def _reload(self, connection: Connection, now: Moment) -> bool:
        """Read the rollouts and rollbacks again if anything about them was stored; whether that was so."""
        found = changes.counters(connection)
        counters = (found.get("rollouts", 0), found.get("rollbacks", 0))
        if counters == self._counters:
            return False
        self._counters = counters
        self._active = {one.id: one for one in storage.rollouts(connection, states=tuple(ACTIVE))}
        self._evidence = {key: self._evidence.get(key) or Evidence() for key in self._active}
        self._condemned = {
            pipeline: storage.standing(connection, pipeline).condemned
            for pipeline in {one.plan.pipeline for one in self._active.values()}
        }
        halted = storage.rollouts(connection, states=(State.HALTED,))
        accepted = storage.rollbacks(connection, states=(RollbackState.ACCEPTED,))
        taken: list[Rollout | Rollback] = [*halted, *accepted]
        self._returning = {one.id: one for one in taken if _is_watched(one, now.at)}
        return True

    def _judge(self, connection: Connection, record: Rollout, now: Moment) -> WaveVerdict | None:
        condemned = self._condemned.get(record.plan.pipeline, ())
        return self._evidence[record.id].verdict(connection, record, condemned, self._fleet, now)

    def _act_on(self, record: Rollout, verdict: WaveVerdict, now: Moment) -> None:
        """Decide by the newest record: an operator may have paused it while we counted."""
        foreseen = machine.step(record, Judged(verdict=verdict), now)
        if not foreseen.commands:
            recent = now.at - self._stored_at.get(record.id, 0) < PROGRESS_US
            if foreseen.record == record or recent:
                return
        with self._context.database.write() as connection:
            decided_at = self._context.now()
            step = machine.step(storage.rollout(connection, record.id), Judged(verdict=verdict), decided_at)
            if step.commands:
                enact_step(connection, self._context, step, decided_at)
            elif step.record.state in ACTIVE:
                storage.save_rollout(connection, step.record)
                changes.mark(connection, "rollouts")
        self._stored_at[record.id] = now.at
        self._woken.set()  # what was just decided is looked at without waiting

    def _note_returns(self, names: Collection[str], now: Moment) -> None:
        """Write down which of these devices are back from what was halted or taken back."""
        for key, record in list(self._returning.items()):
            pipeline, taken, segment = _taken(record)
            inside = [
                name
                for name in names
                if (device := self._fleet.devices.get(name)) is not None and selector.holds(segment, device.labels)
            ]
            said = self._fleet.said(inside, pipeline, taken, boot=self._boot, now_monotonic_us=now.monotonic_us)
            found = observed(record.returning, taken.mark, said)
            if found == record.returning:
                continue
            self._returning[key] = msgspec.structs.replace(record, returning=found)
            with self._context.database.write() as connection:
                self._save_returning(connection, record, found)

    @staticmethod
    def _save_returning(connection: Connection, record: Rollout | Rollback, found: Returning) -> None:
        if isinstance(record, Rollout):
            newest = storage.rollout(connection, record.id)
            storage.save_rollout(connection, msgspec.structs.replace(newest, returning=found))
            changes.mark(connection, "rollouts")
        else:
            taken = storage.rollback(connection, record.id)
            storage.save_rollback(connection, msgspec.structs.replace(taken, returning=found))
            changes.mark(connection, "rollbacks")


def _taken(record: Rollout | Rollback) -> tuple[str, Taken, tuple[selector.Term, ...]]:
    """Pipeline, release and segment of what was halted or taken back."""
    if isinstance(record, Rollout):
        halted = record.plan.release
        return record.plan.pipeline, Taken(release=halted.ref, environment=halted.environment), record.plan.segment
    return record.pipeline, record.taken, record.segment


def _is_watched(record: Rollout | Rollback, now: int) -> bool:
    since = record.ended_at if isinstance(record, Rollout) else record.accepted_at
    limit = RETURNS_SETTLED_US if record.returning.complete else RETURNS_WATCHED_US
    return since is not None and now - since < limit
