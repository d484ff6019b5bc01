"""Whether a wave may go on: per device first, then over the devices, `pass`, `fail` or `insufficient`.

- The unit is the device. Each is judged on its own requests since the wave was released, so no old evidence passes a new wave.
- A device fails when it breaches a gate, or when it fell back from the release or condemned it by itself.
- The wave fails when so many failing devices among those judged are improbable were 2 % of devices simply bad.
- Where that holds by drift alone, the wave fails without blame: it may be the data, so nothing is taken back.
- It passes on enough devices that pass, some of them new in this wave, after the soak, and once nearly all that were seen
  lately serve the release by their own signed word. Everything else is `insufficient`: silence is not health.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from holdfast_server.core.plan import Wave
from holdfast_shared.binomial import upper_tail
from holdfast_shared.judgement import Judgement, Verdict

# In any fleet some devices are simply bad; a release is blamed only for more than that.
BAD_DEVICES_SHARE: Final = 0.02
FLEET_FALSE_ALARM: Final = 0.01
FAILING_MIN: Final = 2
# In a wave of fewer devices, nobody can tell an odd device from a bad release: there, one alone that fails halts the rollout.
DEVICES_TO_TELL: Final = 2
DRIFT: Final = "drift"
# Of the wave's devices that were seen lately, so many must report that they serve the release.
SERVING_SHARE_MIN: Final = 0.9


class DeviceEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One reached device. `in_wave`: of the current wave; `added`: in no earlier one; `serving`: the release, or it shadows with
    it where that is what it was to do. `failure`: why it left the release.
    """

    device: str
    kind: str
    in_wave: bool
    added: bool
    online: bool
    serving: bool
    judgements: tuple[Judgement, ...] = ()
    failure: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.failure or any(one.verdict is Verdict.FAIL for one in self.judgements):
            return Verdict.FAIL
        if self.judgements and all(one.verdict is Verdict.PASS for one in self.judgements):
            return Verdict.PASS
        return Verdict.INSUFFICIENT

    @property
    def to_blame(self) -> bool:
        """It fails by the release's own conduct, whatever its input was."""
        return bool(self.failure) or any(one.verdict is Verdict.FAIL and one.metric != DRIFT for one in self.judgements)


class GateVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate, or (metric `device`) devices that left the release by themselves. `evidence`: devices judged, by kind."""

    metric: str
    threshold: float
    verdict: Verdict
    devices: dict[str, int]
    evidence: dict[str, int]
    codes: dict[str, int] = {}


class WaveVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for wave `wave`, why in words, and all that it rests on."""

    wave: int
    verdict: Verdict
    why: str
    drift_only: bool = False  # it fails by drift alone, which may be the data: a person decides
    failing: tuple[str, ...] = ()
    judged: int = 0
    passing: int = 0
    passing_added: int = 0
    online: int = 0
    serving: int = 0
    chance: float = 1.0
    gates: tuple[GateVerdict, ...] = ()
    evidence: dict[str, int] = {}


def judge_wave(
    wave: Wave,
    gates: Sequence[tuple[str, float]],
    devices: Sequence[DeviceEvidence],
    *,
    soaked: bool,
    does: Literal["serve", "shadow"] = "serve",
) -> WaveVerdict:
    """The verdict on `wave` by all devices that the rollout has reached; `does` is what they were to do with its release."""
    verdicts = {one.device: one.verdict for one in devices}
    failing = tuple(sorted(device for device, verdict in verdicts.items() if verdict is Verdict.FAIL))
    judged = sum(verdict is not Verdict.INSUFFICIENT for verdict in verdicts.values())
    members = [one for one in devices if one.in_wave]
    passing = [one for one in members if verdicts[one.device] is Verdict.PASS]
    online = [one for one in members if one.online]
    chance = upper_tail(len(failing), judged, BAD_DEVICES_SHARE)
    found = WaveVerdict(
        wave=wave.number,
        verdict=Verdict.INSUFFICIENT,
        why="",
        failing=failing,
        judged=judged,
        passing=len(passing),
        passing_added=sum(one.added for one in passing),
        online=len(online),
        serving=sum(one.serving for one in online),
        chance=chance,
        gates=tuple(_gate(metric, threshold, devices, wave) for metric, threshold in gates) + _left(devices),
        evidence=_by_kind(one for one in devices if verdicts[one.device] is not Verdict.INSUFFICIENT),
    )
    if _improbable(len(failing), judged, chance, len(members)):
        why = f"{len(failing)} of {judged} judged device(s) fail: {_causes(devices)}"
        blamed = sum(one.to_blame for one in devices)
        by_conduct = _improbable(blamed, judged, upper_tail(blamed, judged, BAD_DEVICES_SHARE), len(members))
        return msgspec.structs.replace(found, verdict=Verdict.FAIL, why=why, drift_only=not by_conduct)
    missing = _missing(wave, found, added=sum(one.added for one in members), soaked=soaked, does=does)
    if missing:
        return msgspec.structs.replace(found, why=missing)
    why = f"{found.passing} device(s) of the wave pass, {found.serving} of {found.online} seen lately {does} it"
    return msgspec.structs.replace(found, verdict=Verdict.PASS, why=why)


def _improbable(failing: int, judged: int, chance: float, members: int) -> bool:
    """Too many for bad luck; or every device of a wave that has too few to tell."""
    if failing >= FAILING_MIN:
        return chance < FLEET_FALSE_ALARM
    return members < DEVICES_TO_TELL and failing == judged == members == 1


def _missing(wave: Wave, found: WaveVerdict, *, added: int, soaked: bool, does: str) -> str:
    """What the wave still lacks, or an empty text."""
    added_min = min(wave.devices_min, added)
    if found.passing < wave.devices_min:
        return (
            f"{found.passing} of at least {wave.devices_min} device(s) have enough good requests since the wave began"
        )
    if found.passing_added < added_min:
        return f"{found.passing_added} of at least {added_min} device(s) that are new in this wave have enough good requests"
    if not found.online or found.serving < SERVING_SHARE_MIN * found.online:
        return (
            f"{found.serving} of {found.online} device(s) seen lately report that they {does} it; "
            f"{SERVING_SHARE_MIN:.0%} must"
        )
    return "" if soaked else "it still soaks"


def _gate(metric: str, threshold: float, devices: Iterable[DeviceEvidence], wave: Wave) -> GateVerdict:
    counts = {verdict.value: 0 for verdict in Verdict}
    evidence: dict[str, int] = {}
    for one in devices:
        verdict = next((found.verdict for found in one.judgements if found.metric == metric), Verdict.INSUFFICIENT)
        if verdict is Verdict.FAIL or one.in_wave:
            counts[verdict.value] += 1
            if verdict is not Verdict.INSUFFICIENT:
                evidence[one.kind] = evidence.get(one.kind, 0) + 1
    verdict = _summary(counts, wave.devices_min)
    return GateVerdict(metric=metric, threshold=threshold, verdict=verdict, devices=counts, evidence=evidence)


def _left(devices: Iterable[DeviceEvidence]) -> tuple[GateVerdict, ...]:
    """A line of its own for devices that fell back or condemned the release, whatever their counts say."""
    left = [one for one in devices if one.failure]
    if not left:
        return ()
    codes: dict[str, int] = {}
    for one in left:
        codes[one.failure] = codes.get(one.failure, 0) + 1
    counts = {"pass": 0, "fail": len(left), "insufficient": 0}
    return (
        GateVerdict(
            metric="device", threshold=0.0, verdict=Verdict.FAIL, devices=counts, evidence=_by_kind(left), codes=codes
        ),
    )


def _summary(counts: Mapping[str, int], devices_min: int) -> Verdict:
    judged = counts["pass"] + counts["fail"]
    if counts["fail"] >= FAILING_MIN and upper_tail(counts["fail"], judged, BAD_DEVICES_SHARE) < FLEET_FALSE_ALARM:
        return Verdict.FAIL
    return Verdict.PASS if counts["pass"] >= devices_min else Verdict.INSUFFICIENT


def _by_kind(devices: Iterable[DeviceEvidence]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in devices:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    return counts


def _causes(devices: Iterable[DeviceEvidence]) -> str:
    """Each cause with the devices it has, most first."""
    causes: dict[str, int] = {}
    for one in devices:
        breached = [found.metric for found in one.judgements if found.verdict is Verdict.FAIL]
        for cause in ([one.failure] if one.failure else []) + breached:
            causes[cause] = causes.get(cause, 0) + 1
    return ", ".join(
        f"{cause} on {count}" for cause, count in sorted(causes.items(), key=lambda item: (-item[1], item[0]))
    )
