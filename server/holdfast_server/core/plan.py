"""What a rollout will do, as it was agreed on: waves with the devices they reach, and the gates between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from holdfast_server.core.release_in import ReleaseIn
from holdfast_server.core.segments import REGION, Match
from holdfast_shared import cohort, selector
from holdfast_shared.wire.assignment import Requests, Windows
from holdfast_shared.wire.command import ShadowPlan
from holdfast_shared.wire.release import Metric

KIND: Final = "kind"  # a device's label that says how its evidence is counted: `real` or `light`
KIND_DEFAULT: Final = "real"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the planner sees it. `rate_per_s`: requests it answers now; None when nothing is known yet. `unfit`: why
    it could not run the release, as far as it is known.
    """

    device: str
    labels: Mapping[str, str]
    online: bool = True
    rate_per_s: float | None = None
    unfit: str = ""

    @property
    def region(self) -> str:
        return self.labels[REGION]

    @property
    def kind(self) -> str:
        return self.labels.get(KIND, KIND_DEFAULT)


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A condition for going on: milliseconds for latency_ms_p99, a share of 1 for rates."""

    metric: Metric
    threshold: float


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `share` was asked for, `below` is what holds enough devices; both and `real_share` in 1/10 000.

    `devices` are in the wave when it was planned, `adds` of them in no wave before; `match` is all that a rule asks.
    `requests`: only these go to the release, and its trial lasts until another wave says otherwise; None: all.
    """

    number: int
    share: int
    below: int
    match: Match
    devices: int
    adds: int
    online: int
    real_share: int
    devices_min: int
    regions: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    defect_seen: dict[str, float] = {}
    requests: Requests | None = None

    def reaches(self, salt: str, device: str, labels: Mapping[str, str]) -> bool:
        """Whether the device is in this wave: the same question that its rule asks on the device."""
        return selector.holds(self.match, labels) and (
            self.below >= cohort.BUCKETS or cohort.bucket(salt, device) < self.below
        )

    def is_given_by(self, requests: Requests | None) -> bool:
        """Whether a device that gives its release these requests (None: all) gives it what this wave does, or more."""
        if requests is None or self.requests is None:
            return requests is None
        return requests.segment == self.requests.segment and requests.share >= self.requests.share


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`rollout` is its id and the salt of its cohorts. `previous`: what a device would return to; None: nothing.

    `windows`: when a device may download and switch, also one that comes late. `spread_s`: the devices of a wave begin spread
    over so long; who comes when the rollout has ended begins at once. `shadow`: its devices only shadow with it, are judged by
    their agreement instead of gates, and have it no longer when the rollout ends.
    """

    rollout: str
    pipeline: str
    release: ReleaseIn
    segment: Match
    waves: tuple[Wave, ...]
    gates: tuple[Gate, ...]
    requests_min: int
    soak_s: int
    deadline_s: int
    previous: ReleaseIn | None = None
    windows: Windows | None = None
    spread_s: int | None = None
    shadow: ShadowPlan | None = None
    notes: tuple[str, ...] = ()

    def reached(self, waves: int, members: Iterable[Member]) -> list[Member]:
        """The devices in any of the first `waves` waves."""
        return [
            member
            for member in members
            if any(wave.reaches(self.rollout, member.device, member.labels) for wave in self.waves[:waves])
        ]
