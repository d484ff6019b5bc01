"""What the devices of a rollout did since its current wave was released: counted once, then only what is new.

Everything here can be counted again from the tables, so a restart begins with an empty memory and loses nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import Connection, select

from holdfast_server.core import agreement
from holdfast_server.core.authority import Authority, authority_of
from holdfast_server.core.plan import KIND, KIND_DEFAULT, Wave
from holdfast_server.core.rollout import SECOND_US, Moment, Rollout
from holdfast_server.core.standing import Condemnation
from holdfast_server.core.verdict import DeviceEvidence, WaveVerdict, judge_wave
from holdfast_server.ingest.rows import Measures
from holdfast_server.rollouts.fleet import Device, Fleet
from holdfast_server.store import schema
from holdfast_shared import selector
from holdfast_shared.drift import Watch
from holdfast_shared.histogram import Histogram
from holdfast_shared.judgement import Judgement, judge, judge_drift
from holdfast_shared.wire.report import ShadowCounts, Window

# A window's time is taken before its transaction commits. One that becomes visible later than this is counted only after a
# restart; until then its device has less evidence, which never passes anything.
LAG_US: Final = 2_000_000
# More of one device in one wave says nothing new. It is beyond what a device answers in a month, and would make the exact
# binomial slow: a liar could keep everybody's halt waiting.
REQUESTS_COUNTED_MAX: Final = 10**9
# Events by which a device says that it left a release for the release's own fault.
LEFT: Final = ("fell_back", "condemned_here", "self_test_failed")
_measures: Final[msgspec.json.Decoder[Measures]] = msgspec.json.Decoder(Measures)
_latency: Final[msgspec.json.Decoder[Histogram]] = msgspec.json.Decoder(Histogram)


class _Counts:
    """One device's requests to the release since the wave was released."""

    __slots__ = (
        "agreed",
        "bins",
        "errors",
        "judgements",
        "labelled",
        "memory_bytes",
        "nulls",
        "requests",
        "shadow_agreed",
        "shadow_compared",
        "shadow_us",
        "watch",
    )

    def __init__(self) -> None:
        self.requests = self.errors = self.nulls = self.labelled = self.agreed = self.memory_bytes = 0
        self.shadow_compared = self.shadow_agreed = self.shadow_us = 0
        self.bins: dict[int, int] = {}
        self.watch = Watch()
        self.judgements: tuple[Judgement, ...] | None = None

    def add(self, requests: int, errors: int, nulls: int, latency: Histogram, memory_bytes: int) -> None:
        self.memory_bytes = max(self.memory_bytes, memory_bytes)
        self.judgements = None
        if self.requests >= REQUESTS_COUNTED_MAX:
            return
        self.requests += requests
        self.errors += errors
        self.nulls += nulls
        for index, count in latency.bins:
            self.bins[index] = self.bins.get(index, 0) + count

    def measured(self, measures: Measures, drift_threshold: float, *, answered_for: bool) -> None:
        """What the same window measured; `answered_for`: who resumed the rollout has seen its drift."""
        if self.labelled < REQUESTS_COUNTED_MAX:
            self.labelled += measures.labelled
            self.agreed += min(measures.agreed, measures.labelled)
        if not answered_for:
            self.watch = self.watch.seen(measures.drift, drift_threshold)
        self.judgements = None

    def shadowed(self, shadow: ShadowCounts, watched_us: int, since_us: int) -> None:
        """What the same window says of the release where it only shadowed; it came `since_us` after the wave was released.

        A device whose clock jumps tells of more hours than there were: never of more than have passed here.
        """
        if self.shadow_compared < REQUESTS_COUNTED_MAX:
            self.shadow_compared += shadow.compared
            self.shadow_agreed += min(shadow.agreed, shadow.compared)
        self.shadow_us = min(self.shadow_us + watched_us, max(since_us, 0))
        self.judgements = None

    def judged(self, rollout: Rollout) -> tuple[Judgement, ...]:
        """Against every gate; asked again only after something was added."""
        shadow = rollout.plan.shadow
        if self.judgements is None and shadow is not None:
            compared, agreed = self.shadow_compared, self.shadow_agreed
            self.judgements = (agreement.judged(shadow, compared=compared, agreed=agreed, watched_us=self.shadow_us),)
        if self.judgements is None:
            window = Window(
                window=0,
                pipeline=rollout.plan.pipeline,
                release=rollout.plan.release.ref,
                environment=rollout.plan.release.environment,
                opened_at=0,
                closed_at=0,
                requests=self.requests,
                errors=self.errors,
                nulls=self.nulls,
                latency=Histogram(tuple(sorted(self.bins.items()))),
                labelled=self.labelled,
                agreed=self.agreed,
                memory_bytes_max=self.memory_bytes,
            )
            self.judgements = tuple(
                judge_drift(gate.threshold, self.watch)
                if gate.metric == "drift"
                else judge(gate.metric, gate.threshold, window, rollout.plan.requests_min)
                for gate in rollout.plan.gates
            )
        return self.judgements


class Evidence:
    """Of one rollout. `verdict` brings it up to date and judges the current wave."""

    __slots__ = ("_cohort", "_cohort_of", "_counts", "_events_until", "_failures", "_seen", "_until", "_wave")

    def __init__(self) -> None:
        self._wave: tuple[int, int | None] = (0, None)  # its number, and when it was resumed
        self._counts: dict[str, _Counts] = {}
        self._seen: dict[tuple[str, str, int], int] = {}  # windows of the last moments, so that none counts twice
        self._until = 0
        self._events_until = 0
        self._failures: dict[str, str] = {}
        self._cohort: dict[str, tuple[bool, bool]] = {}
        self._cohort_of: tuple[int, int, int] = (-1, -1, -1)

    def verdict(
        self,
        connection: Connection,
        rollout: Rollout,
        condemned: tuple[Condemnation, ...],
        fleet: Fleet,
        now: Moment,
    ) -> WaveVerdict | None:
        """The verdict on the current wave; None while none is released."""
        wave = rollout.current
        if wave is None:
            return None
        progress = rollout.waves[wave.number - 1]
        released_at = progress.released_at or now.at
        if (wave.number, progress.resumed_at) != self._wave:
            self._wave, self._until = (wave.number, progress.resumed_at), released_at
            self._counts.clear()
            self._seen.clear()
        self._find_cohort(rollout, wave, condemned, fleet)
        self._read_windows(connection, rollout, released_at, fleet)
        self._read_events(connection, rollout)
        devices = [
            self._of(device, flags, rollout, wave, fleet.online(device, now.at))
            for name, flags in self._cohort.items()
            if (device := fleet.devices.get(name)) is not None
        ]
        soaked = now.at >= released_at + rollout.plan.soak_s * SECOND_US
        shadow = rollout.plan.shadow
        if shadow is not None:
            gate = (agreement.METRIC, shadow.agreement_min)
            return judge_wave(wave, [gate], devices, soaked=soaked, does="shadow")
        return judge_wave(wave, [(gate.metric, gate.threshold) for gate in rollout.plan.gates], devices, soaked=soaked)

    def _find_cohort(self, rollout: Rollout, wave: Wave, condemned: tuple[Condemnation, ...], fleet: Fleet) -> None:
        """All reached devices, and of each whether it is in this wave and new in it; not those it was taken back from."""
        key = (wave.number, fleet.version, len(condemned))
        if key == self._cohort_of:
            return
        taken = [one.match for one in condemned if one.taken.holds(rollout.plan.release)]
        found: dict[str, tuple[bool, bool]] = {}
        for name, device in fleet.devices.items():
            if any(selector.holds(match, device.labels) for match in taken):
                continue
            inside = [
                one.number for one in rollout.plan.waves[: wave.number] if one.reaches(rollout.id, name, device.labels)
            ]
            if inside:
                found[name] = (inside[-1] == wave.number, inside[0] == wave.number)
        self._cohort, self._cohort_of = found, key

    def _read_windows(self, connection: Connection, rollout: Rollout, released_at: int, fleet: Fleet) -> None:
        table = schema.windows
        since, (_, resumed_at) = max(released_at, self._until - LAG_US), self._wave

        def behind(device: str) -> int:
            return known.clock_behind_us if (known := fleet.devices.get(device)) is not None else 0

        drift = min((gate.threshold for gate in rollout.plan.gates if gate.metric == "drift"), default=0.0)
        rows = connection.execute(
            select(
                table.c.device,
                table.c.incarnation,
                table.c.window,
                table.c.requests,
                table.c.errors,
                table.c.nulls,
                table.c.latency,
                table.c.memory_bytes_max,
                table.c.measures,
                table.c.closed_at,
                table.c.received_at,
                (table.c.closed_at - table.c.opened_at).label("watched_us"),
            )
            .where(
                table.c.pipeline == rollout.plan.pipeline,
                table.c.release_digest == rollout.plan.release.digest,
                table.c.environment == rollout.plan.release.environment,
                table.c.received_at > since,
            )
            .order_by(table.c.received_at, table.c.device, table.c.window)  # drift is two windows running
        )
        for row in rows:
            key = (row.device, row.incarnation, row.window)
            if key in self._seen:
                continue
            self._seen[key] = row.received_at
            self._until = max(self._until, row.received_at)
            counts = self._counts.setdefault(row.device, _Counts())
            counts.add(row.requests, row.errors, row.nulls, _latency.decode(row.latency), row.memory_bytes_max)
            if row.measures:
                closed_at = min(row.received_at, row.closed_at + behind(row.device))
                answered_for = resumed_at is not None and closed_at <= resumed_at
                measures = _measures.decode(row.measures)
                counts.measured(measures, drift, answered_for=answered_for)
                if measures.shadow is not None:
                    counts.shadowed(measures.shadow, row.watched_us, row.received_at - released_at)
        self._seen = {key: at for key, at in self._seen.items() if at > self._until - 2 * LAG_US}

    def _read_events(self, connection: Connection, rollout: Rollout) -> None:
        table = schema.device_events
        rows = connection.execute(
            select(table.c.id, table.c.device, table.c.kind, table.c.code).where(
                table.c.pipeline == rollout.plan.pipeline,
                table.c.release_digest == rollout.plan.release.digest,
                table.c.environment == rollout.plan.release.environment,
                table.c.kind.in_(LEFT),
                table.c.received_at >= (rollout.started_at or 0),
                table.c.id > self._events_until,
            )
        )
        for row in rows:
            self._events_until = max(self._events_until, row.id)
            code = row.code or row.kind
            if row.device not in self._failures or authority_of(code) is Authority.AUTOMATIC:
                self._failures[row.device] = code

    def _of(
        self, device: Device, flags: tuple[bool, bool], rollout: Rollout, wave: Wave, online: bool
    ) -> DeviceEvidence:
        plan = rollout.plan
        counts = self._counts.get(device.device)
        runs = device.serving(plan.pipeline) if plan.shadow is None else device.shadowing(plan.pipeline)
        code = self._failures.get(device.device) or device.condemned_here(plan.pipeline, plan.release) or ""
        return DeviceEvidence(
            device=device.device,
            kind=device.labels.get(KIND, KIND_DEFAULT),
            in_wave=flags[0],
            added=flags[1],
            online=online,
            serving=runs == plan.release and wave.is_given_by(device.requests(plan.pipeline)),
            judgements=counts.judged(rollout) if counts is not None else (),
            failure=code if authority_of(code) is Authority.AUTOMATIC else "",
        )
