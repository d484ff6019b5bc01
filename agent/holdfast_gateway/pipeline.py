"""One pipeline: which slot answers now, and who else tries what that slot could not.

Level-triggered: `wanted` is the whole of what should be. A slot that is not named any more answers what it was asked and
ends; the new serving slot takes over the moment it is ready, and until then the refuge, or what served before, goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Final

from holdfast_gateway import settlement, standby
from holdfast_gateway.bench import Bench
from holdfast_gateway.beside import Beside
from holdfast_gateway.control import Route
from holdfast_gateway.counts import Bad
from holdfast_gateway.inference import Failure, Inference, Refused, error_of
from holdfast_gateway.listener import Listener
from holdfast_gateway.losses import Loss
from holdfast_gateway.quarantine import Quarantine
from holdfast_gateway.recent_answers import Prediction, RecentAnswers
from holdfast_gateway.request_share import RequestShare
from holdfast_gateway.slot import LINGER_S, Slot
from holdfast_gateway.standby import KEPT_S, Memory
from holdfast_gateway.waiting_room import ROOM_MAX, WaitingRoom
from holdfast_gateway.windows import Ledger
from holdfast_gateway.worker import Lost
from holdfast_shared.assign import Target
from holdfast_worker.protocol import Answer, Measured, Outcome

_OK: Final = int(HTTPStatus.OK)  # on every answer's way: a member of an enum takes long to look up
# Each hand-over of one request is a worker lost under it; after so many it is not worth another.
HAND_OVERS_MAX: Final = 3
# When no slot of a pipeline can answer, one that had failed is tried again so often: serving badly beats serving nothing.
LAST_RESORT_S: Final = 30.0


class Pipeline:
    """`in_force`: the serving slot that is wanted has been ready, so it serves, or its refuge while it is down."""

    def __init__(self, name: str, listener: Listener, ledger: Ledger, bench: Bench) -> None:
        self.name = name
        self.wanted = Route(pipeline=name)
        self.in_force = True
        self.slots: dict[str, Slot] = {}
        self.usable: tuple[Slot, ...] = ()  # those that can answer now, the first choice first
        self.share: RequestShare | None = None  # of the requests, for the serving slot; None: all
        self.refused = dict.fromkeys(Refused, 0)
        self.recent = RecentAnswers()
        self._waiting = WaitingRoom(self._waited_too_long)
        self._quarantine = Quarantine()
        self._retiring: dict[str, Slot] = {}
        self._draining: set[Slot] = set()
        self._stopgap: Slot | None = None
        self.beside = Beside(name, ledger, bench, listener.status_changed)
        self._awaited: Slot | None = None
        self._listener = listener
        self._ledger = ledger
        self._bench = bench
        self._loop = asyncio.get_running_loop()

    # -- what should be

    def route(self, wanted: Route) -> None:
        """Converge to it. May be repeated."""
        changed = wanted.serving != self.wanted.serving
        active = self.usable[0] if self.usable else None
        self.wanted = wanted
        self.share = RequestShare.of(wanted, self.share)
        named = {one.key: one for one in (wanted.serving, wanted.refuge, wanted.testing) if one is not None}
        if changed:
            self.in_force = wanted.serving is None
            self._quarantine.clear()
        answering = {one.key for one in (wanted.serving, wanted.refuge) if one is not None}
        if self._stopgap is not None and self._stopgap.target.key in answering:
            self._stopgap = None
        for key, target in named.items():
            if key not in self.slots:
                self._slot(target)
        if active is not None and active.target.key not in answering and wanted.serving is not None:
            self._stopgap = active  # also what is only tested from now on: it answers until somebody else can
        leaving = [slot for key, slot in self.slots.items() if key not in named and slot is not self._stopgap]
        for slot in leaving:
            del self.slots[slot.target.key]
        for slot in [self.slots[key] for key in named]:
            if slot.cold:
                self._start_or_keep_cold(slot)
        self._settle_who_answers()
        for slot in leaving:
            self._retire(slot)
        self.beside.route(wanted.shadow, serves=bool(self.usable), starting_bytes=self._promised_bytes)
        self._listener.status_changed()

    def resume(self, recorded: Route) -> None:
        """The first route of this gateway's life, from the record: who asks while it is loaded waits for it."""
        self.route(recorded)
        for slot in self.slots.values():
            slot.resume()

    def retire(self) -> None:
        """Serve nothing any more."""
        self.route(Route(pipeline=self.name))

    def kill(self) -> None:
        """End what is still draining."""
        for slot in list(self._draining):
            slot.kill()
        self.beside.kill()

    @property
    def empty(self) -> bool:
        """Nothing is left of it."""
        return not self.slots and not self._draining and self.beside.empty

    @property
    def settled(self) -> bool:
        """It can answer, or it is known that it cannot."""
        return bool(self.usable) or all(slot.state == "failed" for slot in self._chosen())

    @property
    def keys(self) -> set[str]:
        """Of every target that is here, or still draining."""
        return {*self.slots, *(slot.target.key for slot in self._draining), *self.beside.keys}

    def retry_load(self, key: str) -> None:
        """Start a slot again that had failed."""
        if key in self.slots:
            self.slots[key].start_afresh()

    def tick(self) -> None:
        """Once a second: measure, and try again what failed when there is nothing else."""
        for slot in self.slots.values():
            slot.measure_memory()
        self._settle_refuge()  # before what only shadows: of room for one, the refuge has it
        self.beside.tick(serves=bool(self.usable), starting_bytes=self._promised_bytes)
        if self.usable:
            return
        for slot in self._chosen():
            if slot.state == "failed" and self._loop.time() - slot.failed_at >= LAST_RESORT_S:
                slot.start_afresh()

    def _refuge(self) -> Slot | None:
        """The slot that is refuge and nothing else."""
        wanted = self.wanted
        if wanted.refuge is None or self.share is not None or wanted.refuge in (wanted.serving, wanted.testing):
            return None
        return self.slots.get(wanted.refuge.key)

    @property
    def _starting_bytes(self) -> int:
        """What the slots that are being loaded will take."""
        return sum(slot.needed_bytes for slot in self.slots.values() if slot.state == "loading")

    @property
    def _promised_bytes(self) -> int:
        """The same, and what a refuge will take that waits for memory: what only shadows does not get it before."""
        refuge = self._refuge() if self._bench.standby == "auto" else None
        waits = refuge is not None and refuge.cold
        return self._starting_bytes + (refuge.needed_bytes if refuge is not None and waits else 0)

    def _start_or_keep_cold(self, slot: Slot) -> None:
        room = standby.is_warm(self._bench.standby, Memory.now(), slot.needed_bytes, self._starting_bytes)
        if room or slot is not self._refuge():
            slot.start()
        else:
            slot.keep_cold()

    def _settle_refuge(self) -> None:
        """Loaded or not, as memory comes and goes; and loaded in any case when nobody else can answer."""
        slot = self._refuge()
        if slot is None:
            return
        if slot.cold:
            others = [other for other in self._chosen() if other is not slot]
            if all(other.state == "failed" for other in others):
                slot.start_on_demand()
            elif self.usable and standby.is_warm(self._bench.standby, Memory.now(), slot.needed_bytes):
                slot.start()
            return
        unused = slot.idle and slot not in self.usable[:1] and self._loop.time() - slot.used_at >= KEPT_S
        if unused and standby.lets_go(self._bench.standby, Memory.now()):
            slot.rest()

    # -- requests

    def submit(self, inference: Inference) -> None:
        """Have it answered by the slot that answers now, or by one that will in time."""
        if left_s := self._quarantine.left_s(inference, time.monotonic()):
            said = (
                f"{self.name}: this request killed the workers of two releases; it is refused for {left_s:.0f} s more"
            )
            self._refuse(inference, Refused.QUARANTINED, HTTPStatus.UNPROCESSABLE_ENTITY, said)
            return
        if not self.usable:
            self._wait(inference)
            return
        slot = self.usable[0] if self.share is None else self.share.first(inference, self.usable)
        if inference.version and inference.version != slot.version:
            said = self.not_this_version(inference.version)
            self._refuse(inference, Refused.OTHER_VERSION, HTTPStatus.NOT_FOUND, said)
            return
        slot.offer(inference)

    @property
    def answering(self) -> tuple[Slot, ...]:
        """The slots that requests are given to, the first choice first; while a share is in force there may be two."""
        return self.usable if self.share is not None else self.usable[:1]

    def why_not(self) -> str:
        """Why nobody can answer."""
        slots = self._chosen()
        if not slots:
            return f"{self.name}: no release is assigned to serve here yet"
        return f"{self.name}: no release can answer now: " + "; ".join(slot.described() for slot in slots)

    def not_this_version(self, version: str) -> str:
        others = " and ".join(dict.fromkeys(slot.version for slot in self.answering))
        return f"{self.name}: version {version} does not serve here now; version {others} does"

    def answered(self, slot: Slot, inference: Inference, answer: Answer, latency_ms: float) -> None:
        now = time.monotonic()
        match answer.outcome:
            case Outcome.OK:
                inference.asker.answer(_OK, answer.header_length, answer.body)
                settlement.answered_well(slot, inference, latency_ms, answer.compute_us, now)
                if answer.measured is not None:
                    self._measured(slot, answer.measured, now)
                if slot is self._awaited:
                    self._awaited = None
                    self._listener.switched(self.name, slot.target, now)
                self._tell_failures(inference)
                if self.beside.shadow is not None and slot.target == self.wanted.serving:
                    self.beside.offer(inference, answer)
            case Outcome.INPUT_FAULT:
                inference.asker.answer(HTTPStatus.BAD_REQUEST, answer.header_length, answer.body)
                settlement.faulty(slot, inference, now)
            case Outcome.NULL:
                if inference.null_answer is None:
                    inference.null_answer = (answer.header_length, bytes(answer.body))
                bad = Bad(error=False, hang=False, null=True, latency_ms=latency_ms, at_s=now)
                self._try_another(inference, Failure(slot, bad, None, "answered null"))
            case Outcome.ERROR:
                bad = Bad(error=True, hang=False, null=False, latency_ms=latency_ms, at_s=now)
                self._try_another(inference, Failure(slot, bad, None, error_of(answer.body)))

    def _measured(self, slot: Slot, measured: Measured, now: float) -> None:
        slot.counts.measured(measured)
        if measured.request and measured.classes:
            prediction = Prediction(slot.counts, slot.version, measured.classes, now)
            self.recent.remember(measured.request, prediction)

    def lost(self, slot: Slot, lost: Lost) -> None:
        now = self._loop.time()
        if lost.culprit is not None:
            self._quarantine.lost_at(lost.culprit, slot.target.key, now)
        for inference in reversed(lost.behind):  # each goes before the ones that are there already
            inference.behind = slot
            self._find_another(inference)
        if lost.culprit is not None:
            hang = lost.loss is Loss.HANG
            bad = Bad(error=True, hang=hang, null=False, latency_ms=lost.culprit_ms, at_s=now)
            self._try_another(lost.culprit, Failure(slot, bad, lost.loss, lost.detail))

    def _refuse(self, inference: Inference, why: Refused, status: HTTPStatus, message: str) -> None:
        self.refused[why] += 1
        inference.refuse(status, message)

    def _try_another(self, inference: Inference, failure: Failure) -> None:
        """It failed in one slot: the same bytes go to the next, once."""
        inference.failures.append(failure)
        self._find_another(inference)

    def _find_another(self, inference: Inference) -> None:
        """Of what was asked in vain: now, in a moment, or not at all."""
        other = next(self._others(inference, self.usable), None)
        if other is not None:
            inference.hand_overs += 1
            settlement.asked_again(inference, other, self._loop.time())
            other.take_over(inference)
        elif self._coming(inference) is not None and self._waiting.has_room():
            self._wait(inference)
        else:
            self._give_up(inference)

    def _others(self, inference: Inference, slots: Iterable[Slot]) -> Iterator[Slot]:
        """Those that may be asked it: they have not failed it, and it is not tried for ever."""
        if inference.hand_overs >= HAND_OVERS_MAX or len(inference.failures) > 1:
            return
        failed = {failure.slot.target.key for failure in inference.failures}
        for slot in slots:
            if slot.target.key not in failed and inference.version in ("", slot.version):
                yield slot

    def _give_up(self, inference: Inference) -> None:
        inference.asker.answer(*settlement.last_words(inference))
        if settlement.unanswered(inference, self._loop.time()):
            self._tell_failures(inference)

    def _tell_failures(self, inference: Inference) -> None:
        for failure in inference.failures:
            self._listener.failure_counted(failure.slot)

    # -- requests that wait for a slot

    def _coming(self, inference: Inference) -> Slot | None:
        """The slot that will be ready for it soon: one that is being started again, or a cold one, which is started now."""
        chosen = list(self._others(inference, self._chosen()))
        coming = next((slot for slot in chosen if slot.comes_back), None)
        if coming is None and not any(slot.state == "loading" for slot in chosen):
            coming = next((slot for slot in chosen if slot.cold), None)
            if coming is not None:
                coming.start_on_demand()
        return coming if coming is not None and coming.comes_back else None

    def _wait(self, inference: Inference) -> None:
        """Nobody can answer it now: it waits for a worker that is being started again, as long as its slot says."""
        coming = self._coming(inference)
        if coming is None:
            self._refuse(inference, Refused.NO_RELEASE, HTTPStatus.SERVICE_UNAVAILABLE, self.why_not())
        elif not self._waiting.has_room():
            said = f"{ROOM_MAX} requests wait for {coming}, which is being started; ask again later"
            self._refuse(inference, Refused.QUEUE_FULL, HTTPStatus.TOO_MANY_REQUESTS, said)
        else:
            self._waiting.enter(inference, coming.patience_s)

    def _look_who_waits(self) -> None:
        """Something changed: whoever can be answered is, and who cannot be any more is told so."""
        for inference in self._waiting.all_out(self.usable[0].deadline_s if self.usable else None):
            if inference.failures or inference.behind is not None:
                self._find_another(inference)
            elif not inference.asker.gone:
                self.submit(inference)

    def turn_away_who_waits(self) -> None:
        """Nobody is waited for any more."""
        for inference in self._waiting.all_out():
            self._waited_too_long(inference)

    def _waited_too_long(self, inference: Inference) -> None:
        if inference.failures or inference.behind is not None:
            self._give_up(inference)
        else:
            self._refuse(inference, Refused.NO_RELEASE, HTTPStatus.SERVICE_UNAVAILABLE, self.why_not())

    # -- slots

    def changed(self, slot: Slot) -> None:  # noqa: ARG002 - slots tell who they are
        self._settle_who_answers()
        self._listener.status_changed()

    def left(self, slot: Slot) -> None:
        self._draining.discard(slot)
        if self._retiring.get(slot.target.key) is slot:
            del self._retiring[slot.target.key]
        self._listener.status_changed()

    def _slot(self, target: Target) -> Slot:
        """The slot of that target, new unless one that is draining can still be asked."""
        slot = self._retiring.pop(target.key, None)
        if slot is not None and slot.revive():
            self._draining.discard(slot)
        else:
            counts = self._ledger.counts_of(self.name, target, wall_us=time.time_ns() // 1000)
            slot = Slot(self, self.name, target, counts, self._bench)
        self.slots[target.key] = slot
        return slot

    def _retire(self, slot: Slot) -> None:
        self._retiring[slot.target.key] = slot
        self._draining.add(slot)
        slot.retire(LINGER_S if self.usable else 0.0)

    def _chosen(self) -> list[Slot]:
        """The slots that may answer, ready or not, the first choice first."""
        targets = (self.wanted.serving, self.wanted.refuge)
        return [self.slots[one.key] for one in targets if one is not None and one.key in self.slots]

    def _settle_who_answers(self) -> None:
        """Work out `usable`; the serving slot that became ready takes over at once, with all that waits for another."""
        before = self.usable
        self.usable = tuple(dict.fromkeys(slot for slot in self._chosen() if slot.state == "ready"))
        stopgap = self._stopgap
        if stopgap is not None and not self.usable and stopgap.state == "ready":
            self.usable = (stopgap,)
        elif stopgap is not None:
            self._stopgap = None
            if self.slots.get(stopgap.target.key) is stopgap and stopgap.target != self.wanted.testing:
                del self.slots[stopgap.target.key]
                self._retire(stopgap)
        if not self.in_force and self.usable and self.usable[0].target == self.wanted.serving:
            self.in_force = True
            self._awaited = self.usable[0]
            self._awaited.counts.forget_sliding()
        if before and self.usable and before[0] is not self.usable[0]:
            before[0].hand_back()
        if self._waiting:
            self._look_who_waits()
