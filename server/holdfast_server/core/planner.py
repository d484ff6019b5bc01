"""From what an operator asks to a plan that can be kept: shares that hold enough devices, gates that can reach a verdict.

A plan is refused while it is written, with the field and the next step, rather than held by silence once it runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from holdfast_server.core import request_shares
from holdfast_server.core.plan import Gate, Member, Plan, Wave
from holdfast_server.core.release_in import ReleaseIn
from holdfast_server.core.segments import REGION, Match, check_known, check_size, conjunction
from holdfast_server.core.verdict import DEVICES_TO_TELL
from holdfast_shared import cohort, selector
from holdfast_shared.binomial import upper_tail
from holdfast_shared.errors import Malformed
from holdfast_shared.judgement import FALSE_ALARM, FLOORS, SLOW_SHARE_ALLOWED
from holdfast_shared.selector import Term
from holdfast_shared.wire.command import RolloutPlan, WavePlan
from holdfast_shared.wire.release import Guardrail, Release

CANARY_RING: Final = {"ring": "canary"}
DEFAULT_SHARES: Final = (100, 500, 2_000, 10_000)
# The least that can show a difference between one odd device and a bad release.
DEVICES_MIN: Final = 3
# An error rate of 10 % against an allowed 2 % shows in so many requests nine times of ten.
REQUESTS_MIN: Final = 100
SOAK_S: Final = 300
DEADLINE_S: Final = 86_400
# A wave's longest, on the wire.
DEADLINE_MAX_S: Final = 30 * 86_400
# Twice the hours that a device must shadow: it is not always on.
DEADLINE_PER_SHADOW_HOUR_S: Final = 2 * 3600
# A window may open once a week.
DEADLINE_WITH_WINDOWS_S: Final = 8 * 86_400
# What is no share of requests: nothing to compute of how many could breach it.
NO_SHARES: Final = frozenset({"drift", "memory_bytes"})
# When a release has no guardrail that counts of requests can answer.
DEFAULT_GATES: Final = (Gate(metric="error_rate", threshold=0.02), Gate(metric="null_rate", threshold=0.02))
# Reasons, and devices of each, that a note names.
UNFIT_SHOWN: Final = 5
DEFECTS_SHOWN: Final = (0.01, 0.05, 0.10)


def plan(asked: RolloutPlan, *, rollout: str, release: Release, digest: str, fleet: Sequence[Member]) -> Plan:
    """The plan of what was asked. Raises NotSupported or Malformed; conflicts with what else runs are checked elsewhere."""
    _refuse_what_no_shadow_has(asked)
    check_size(asked.segment, field="segment")
    check_known(asked.segment, [member.labels for member in fleet], field="segment")
    segment = conjunction(asked.segment)
    members = [] if segment is None else [member for member in fleet if selector.holds(segment, member.labels)]
    if segment is None or not members:
        raise Malformed(
            f"no device is in the segment {selector.written(asked.segment)}",
            field="segment",
            next_step="look at: holdfast device list 'SEGMENT'",
        )
    gates = _gates(asked, release) if asked.shadow is None else ()
    requests_min = asked.requests_min or max((REQUESTS_MIN, *(_requests_to_fail(gate) for gate in gates)))
    if asked.shadow is not None:
        requests_min = asked.shadow.rows_min
    for gate in gates:
        _refuse_a_gate_that_cannot_fail(gate, requests_min)
    soak_s = SOAK_S if asked.soak_s is None else asked.soak_s
    deadline_s = _deadline_s(asked, soak_s)
    waves, notes = _waves(asked, segment, members, rollout, fleet)
    for wave in waves:
        _refuse_a_wave_too_quiet(wave, members, rollout, requests_min, deadline_s)
    return Plan(
        rollout=rollout,
        pipeline=asked.pipeline,
        release=ReleaseIn(version=release.version, digest=digest, environment=_environment(asked, release)),
        segment=segment,
        waves=waves,
        gates=gates,
        requests_min=requests_min,
        soak_s=soak_s,
        deadline_s=deadline_s,
        windows=asked.windows,
        shadow=asked.shadow,
        spread_s=asked.spread_s,
        notes=(*notes, *_spread(asked), *_unfit(members)),
    )


def _deadline_s(asked: RolloutPlan, soak_s: int) -> int:
    """As asked, or long enough. Raises Malformed for one by which nothing could pass."""
    patience_s = DEADLINE_S if asked.windows is None else DEADLINE_WITH_WINDOWS_S
    hours = asked.shadow.hours_min if asked.shadow is not None else 0
    patience_s = min(DEADLINE_MAX_S, patience_s + DEADLINE_PER_SHADOW_HOUR_S * hours)
    spread_s = asked.spread_s or 0
    deadline_s = max(patience_s, 2 * (soak_s + spread_s)) if asked.deadline_s is None else asked.deadline_s
    if deadline_s <= soak_s + spread_s:
        spread = f", spread over {spread_s} s," if spread_s else ""
        raise Malformed(
            f"a wave of {soak_s} s soak{spread} can never pass by its deadline of {deadline_s} s",
            field="deadline_s",
            next_step="make the deadline longer than the soak" + (" and the spread together" if spread_s else ""),
        )
    if deadline_s <= hours * 3600:
        raise Malformed(
            f"no device can tell of {hours} hours by a deadline of {deadline_s} s",
            field="deadline_s",
            next_step="make the deadline longer, or shadow.hours_min smaller",
        )
    return deadline_s


def _spread(asked: RolloutPlan) -> tuple[str, ...]:
    return (f"the devices of a wave begin spread over {asked.spread_s} s",) if asked.spread_s else ()


def _environment(asked: RolloutPlan, release: Release) -> str:
    """As asked, which is a digest or `system` by now; else the one that the release prefers."""
    if asked.environment is None:
        return release.environments[0]
    if asked.environment not in release.environments:
        raise Malformed(
            f"{release.version} was not validated in {asked.environment}",
            field="environment",
            next_step=f"name one of {', '.join(release.environments)}",
        )
    return asked.environment


def _refuse_what_no_shadow_has(asked: RolloutPlan) -> None:
    if asked.shadow is None:
        return
    given = [f"waves[{index}].requests" for index, wave in enumerate(asked.waves) if wave.requests is not None]
    for field in (
        *(name for name in ("gates", "requests_min", "windows", "requests", "spread_s") if getattr(asked, name)),
        *given,
    ):
        raise Malformed(
            "a release that only shadows is judged by its agreement alone, and neither switches nor answers anything",
            field=field,
            next_step="leave it out: shadow.agreement_min, rows_min and hours_min say what must hold",
        )


def _gates(asked: RolloutPlan, release: Release) -> tuple[Gate, ...]:
    """What was asked; else the release's own guardrails, the strictest of each metric; else the defaults."""
    for index, gate in enumerate(asked.gates):
        if lacking := release.lacks(gate.metric):
            raise Malformed(
                f"a gate on {gate.metric} gets no counts: release {release.version} declares no {lacking}",
                field=f"gates[{index}].metric",
                next_step=f"leave the gate out, or publish a version with {lacking}",
            )
    if asked.gates:
        return tuple(Gate(metric=gate.metric, threshold=gate.threshold) for gate in asked.gates)
    strictest: dict[str, Gate] = {}
    for rail in release.guardrails:
        known = strictest.get(rail.metric)
        if known is None or _stricter(rail, known):
            strictest[rail.metric] = Gate(metric=rail.metric, threshold=rail.threshold)
    return tuple(strictest[metric] for metric in sorted(strictest)) or DEFAULT_GATES


def _stricter(rail: Guardrail, known: Gate) -> bool:
    return rail.threshold > known.threshold if rail.metric in FLOORS else rail.threshold < known.threshold


def _allowed(gate: Gate) -> float:
    """The share of requests that may be bad; of drift, its index."""
    if gate.metric == "latency_ms_p99":
        return SLOW_SHARE_ALLOWED
    return 1 - gate.threshold if gate.metric in FLOORS else gate.threshold


def _requests_to_fail(gate: Gate) -> int:
    """The fewest requests that, all bad, are a breach: two, or as many as chance needs. A share of 1 is never breached.

    Drift has its own minimum of rows, whatever the others need; memory is no share of anything.
    """
    if gate.metric in NO_SHARES:
        return 0
    allowed = _allowed(gate)
    if allowed >= 1:
        return 2
    count = 2 if allowed <= 0 else max(2, math.floor(math.log(FALSE_ALARM) / math.log(allowed)))
    while upper_tail(count, count, allowed) >= FALSE_ALARM:
        count += 1
    return count


def _refuse_a_gate_that_cannot_fail(gate: Gate, requests_min: int) -> None:
    if gate.metric in NO_SHARES:
        return
    if _allowed(gate) >= 1:
        raise Malformed(
            f"no device can breach a {gate.metric} of {gate.threshold:g}: every request may be bad",
            field="gates",
            next_step="give a threshold above 0" if gate.metric in FLOORS else "give a threshold below 1",
        )
    needed = _requests_to_fail(gate)
    if requests_min < needed:
        raise Malformed(
            f"{requests_min} requests can never breach {gate.metric} > {gate.threshold:g}, even when all are bad",
            field="requests_min",
            next_step=f"ask for at least {needed}",
        )


def _waves(
    asked: RolloutPlan, segment: Match, members: Sequence[Member], rollout: str, fleet: Sequence[Member]
) -> tuple[tuple[Wave, ...], tuple[str, ...]]:
    """The waves that each add a device, and what to say about those left out."""
    planned = list(asked.waves) or _default_waves(members)
    known = [member.labels for member in fleet]
    cohorts: list[set[str]] = []
    waves: list[Wave] = []
    notes: list[str] = []
    for index, one in enumerate(planned):
        match = _match_of(one, segment, known, field=f"waves[{index}]")
        requests = request_shares.given_by(asked, one, field=f"waves[{index}]")
        wave, inside = _sized(one, match, members, rollout, asked.devices_min, field=f"waves[{index}]")
        last = index == len(planned) - 1
        if last and cohorts and cohorts[-1] == inside and waves[-1].requests == requests:
            dropped = waves.pop()
            cohorts.pop()
            notes.append(f"the wave of {_percent(dropped.share)} has the same devices as the last: left out")
        elif inside <= request_shares.reached(waves, cohorts, requests) and not (last and requests is None):
            notes.append(f"the wave of {_percent(one.share)} adds no device to those before it: left out")
            continue
        adds = len(inside.difference(*cohorts))
        waves.append(msgspec.structs.replace(wave, number=len(waves) + 1, adds=adds, requests=requests))
        cohorts.append(inside)
        if wave.below > wave.share:
            notes.append(
                f"wave {len(waves)} asks for {_percent(one.share)} and takes {_percent(wave.below)} of the buckets, "
                f"to hold {wave.devices_min} device(s)"
            )
        if wave.devices < DEVICES_TO_TELL:
            notes.append(
                f"wave {len(waves)} has fewer than {DEVICES_TO_TELL} devices: one device alone that fails halts the rollout"
            )
        if wave.online < wave.devices_min:
            notes.append(f"wave {len(waves)} waits: {wave.online} of its {wave.devices} device(s) were seen lately")
    whole, said = request_shares.completed(waves)
    return whole, (*notes, *said)


def _default_waves(members: Sequence[Member]) -> list[WavePlan]:
    """The canary ring of all regions, where there is one; then all regions at 1, 5, 20 and 100 %."""
    ring = any(member.labels.get("ring") == CANARY_RING["ring"] for member in members)
    first = [WavePlan(share=cohort.BUCKETS, labels=dict(CANARY_RING))] if ring else []
    return first + [WavePlan(share=share) for share in DEFAULT_SHARES]


def _match_of(wave: WavePlan, segment: Match, known: Sequence[Mapping[str, str]], *, field: str) -> Match:
    terms = [Term(label=label, op="in", values=(value,)) for label, value in sorted(wave.labels.items())]
    regions = [Term(label=REGION, op="in", values=tuple(sorted(set(wave.regions))))] if wave.regions else []
    check_known(terms, known, field=f"{field}.labels")
    check_known(regions, known, field=f"{field}.regions")
    match = conjunction(segment, terms, regions)
    if match is None:
        raise Malformed(
            f"the wave lies outside the segment {selector.written(segment)}",
            field=field,
            next_step="choose regions and labels inside the segment",
        )
    check_size(match, field=field)
    return match


def _sized(
    asked: WavePlan, match: Match, members: Sequence[Member], rollout: str, devices_min: int | None, *, field: str
) -> tuple[Wave, set[str]]:
    """The wave with `below` raised to the smallest bucket that holds its minimum, of devices seen lately if there are enough."""
    if asked.share == 0:
        raise Malformed("a wave of share 0 reaches no device", field=f"{field}.share", next_step="give 1 to 10000")
    candidates = [member for member in members if selector.holds(match, member.labels)]
    wanted = devices_min if devices_min is not None else min(DEVICES_MIN, len(candidates))
    if not candidates or len(candidates) < wanted:
        raise Malformed(
            f"{selector.written(match)} has {len(candidates)} device(s), fewer than the {wanted or 1} that must reach a verdict",
            field=field,
            next_step="lower devices_min, or widen the wave",
        )
    buckets = {member.device: cohort.bucket(rollout, member.device) for member in candidates}
    online = sorted(buckets[member.device] for member in candidates if member.online)
    ordered = online if len(online) >= wanted else sorted(buckets.values())
    below = max(asked.share, ordered[wanted - 1] + 1)
    inside = {device for device, bucket in buckets.items() if below >= cohort.BUCKETS or bucket < below}
    wave = Wave(
        number=0,
        share=asked.share,
        below=below,
        match=match,
        devices=len(inside),
        adds=0,
        online=sum(member.online and member.device in inside for member in candidates),
        real_share=round(len(inside) * cohort.BUCKETS / len(candidates)),
        devices_min=wanted,
        regions=tuple(sorted(set(asked.regions))),
        labels=dict(asked.labels),
        defect_seen={f"{share:.0%}": round(1 - (1 - share) ** len(inside), 4) for share in DEFECTS_SHOWN},
    )
    return wave, inside


def _refuse_a_wave_too_quiet(
    wave: Wave, members: Sequence[Member], rollout: str, requests_min: int, deadline_s: int
) -> None:
    """Where every device's rate of requests is known: enough of them must get `requests_min` before the deadline."""
    inside = [member for member in members if wave.reaches(rollout, member.device, member.labels)]
    share = wave.requests.share / cohort.BUCKETS if wave.requests is not None else 1
    rates = [member.rate_per_s * share for member in inside if member.rate_per_s is not None]
    if len(rates) < len(inside):
        return
    able = sum(rate * deadline_s >= requests_min for rate in rates)
    if able < wave.devices_min:
        raise Malformed(
            f"in wave {wave.number} {able} device(s) get {requests_min} requests within {deadline_s} s at their present rate; "
            f"{wave.devices_min} must",
            field="requests_min",
            next_step="lower requests_min, lengthen deadline_s, or widen the wave (or its share of the requests)",
        )


def _unfit(members: Sequence[Member]) -> Iterator[str]:
    """By reason, the most devices first. They stay what they are, and count as members that do not serve it."""
    reasons = Counter(member.unfit for member in members if member.unfit)
    for why, count in reasons.most_common(UNFIT_SHOWN):
        names = [member.device for member in members if member.unfit == why][:UNFIT_SHOWN]
        more = f" and {count - len(names)} more" if count > len(names) else ""
        yield (
            f"{count} of {len(members)} device(s) cannot run it, as they last reported: {why} ({', '.join(names)}{more}); "
            "they stay as they are, and their waves wait for them"
        )


def _percent(share: int) -> str:
    return f"{share / 100:g} %"
