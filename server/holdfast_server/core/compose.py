"""The documents of one pipeline: what base rules, running rollouts and condemnations mean, region by region.

Order of rules: running rollouts first (they do not overlap), then the base, newest first. Everything is level-triggered: a
document states all of it each time, and is issued only when that changed.

Limits. A *plan* must leave room for emergencies (`check_room`). A *rollback* always fits: what means the same is written
shorter; should that not be enough, condemnations are left out whose release no rule gives to their devices anyway (which then
move without haste), then rules without which their devices keep what they run, and at the very last the oldest base rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from holdfast_server.core.base_rules import BaseRule, release_for
from holdfast_server.core.release_in import ReleaseIn, rule_fields, said_by
from holdfast_server.core.request_shares import widest_first
from holdfast_server.core.rollout import ACTIVE, Rollout, State, WaveState
from holdfast_server.core.segments import Match, covers, inside_region, union
from holdfast_server.core.standing import Standing
from holdfast_shared import cohort, selector, strict_json
from holdfast_shared.errors import Conflict
from holdfast_shared.wire.assignment import (
    CONDEMNED_MAX,
    PAYLOAD_BYTES_MAX,
    RULES_MAX,
    Assignment,
    Condemned,
    Requests,
    Rule,
    Scope,
)

# What a plan must leave free in every document, so that rollbacks have room.
RULES_RESERVED: Final = 16
CONDEMNED_RESERVED: Final = 16
BYTES_RESERVED: Final = 12 * 1024
# A document's cause is for people who read one; the whole story is in the decision.
CAUSE_MAX: Final = 500
# Fleet, scope, pipeline, cause, times and counters beside the rules.
_FRAME_BYTES: Final = 4 * 1024


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What a region's document says, without its order and times. `omitted` says in words what did not fit."""

    rules: tuple[Rule, ...]
    condemned: tuple[Condemned, ...]
    omitted: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return len(strict_json.encode(self))


def compose(standing: Standing, region: str) -> Body:
    """The body of a region's document: always within the wire's limits."""
    condemned = _merged(_condemned_in(standing, region))
    active = [rule for rollout in standing.rollouts for rule in _rollout_rules(rollout, standing.base, region)]
    base = _base_rules(standing.base, condemned, region)
    omitted: list[str] = []
    body = Body(rules=(*active, *base), condemned=tuple(condemned))
    while not _fits(body):
        body = _smaller(body, omitted)
    return msgspec.structs.replace(body, omitted=tuple(omitted))


def document(body: Body, *, region: str, pipeline: str, cause: str) -> Assignment:
    """The document of a body; the outbox gives it its fleet, its order and its times."""
    return Assignment(
        fleet="unsigned",
        scope=Scope(region=region),
        pipeline=pipeline,
        epoch=0,
        seq=0,
        issued_at=0,
        not_after=0,
        rules=body.rules,
        condemned=body.condemned,
        cause=cause[:CAUSE_MAX],
    )


def check_room(standing: Standing, rollout: Rollout, regions: Iterable[str]) -> None:
    """Raises Conflict when the rollout, all its waves released, would leave a document too little room for rollbacks."""
    fully = msgspec.structs.replace(
        rollout,
        state=State.RUNNING,
        waves=tuple(msgspec.structs.replace(wave, state=WaveState.RELEASED) for wave in rollout.waves),
    )
    whole = msgspec.structs.replace(standing, rollouts=(*standing.rollouts, fully))
    for region in regions:
        body = compose(whole, region)
        over = [
            text
            for text, found, limit in (
                ("rules", len(body.rules), RULES_MAX - RULES_RESERVED),
                ("condemnations", len(body.condemned), CONDEMNED_MAX - CONDEMNED_RESERVED),
                ("bytes", body.size_bytes, PAYLOAD_BYTES_MAX - BYTES_RESERVED),
            )
            if found > limit
        ]
        if over or body.omitted:
            raise Conflict(
                f"the document of region {region} would have too many {', '.join(over) or 'entries'}: room is kept for rollbacks",
                field="waves",
                next_step="plan fewer waves, or first finish a rollout of one release to the whole region, which clears rules",
                code="document-full",
            )


def _rollout_rules(rollout: Rollout, base: Sequence[BaseRule], region: str) -> list[Rule]:
    """A rule for each released wave, the largest share of requests and of these the widest first, without what another covers.

    A shadow that is paused has none.
    """
    shadows = rollout.plan.shadow is not None
    if rollout.state not in ACTIVE or (shadows and rollout.state is not State.RUNNING):
        return []
    kept: list[tuple[Match, int, ReleaseIn | None, Requests | None]] = []
    for wave in widest_first(rollout.plan.waves[: rollout.released]):
        match = inside_region(wave.match, region)
        if match is not None and not any(covers(wide, match) and below >= wave.below for wide, below, *_ in kept):
            kept.append((match, wave.below, None if shadows else release_for(base, wave.match), wave.requests))
    return [
        Rule(
            mode="shadow" if shadows else "serve" if rollout.state is State.RUNNING else "keep",
            match=match,
            below=below,
            salt=rollout.id if below < cohort.BUCKETS else "",
            **rule_fields(rollout.plan.release, standby),
            requests=requests,
            windows=rollout.plan.windows,
            spread_s=rollout.plan.spread_s,
        )
        for match, below, standby, requests in kept
    ]


def _base_rules(base: Sequence[BaseRule], condemned: Sequence[Condemned], region: str) -> list[Rule]:
    rules: list[Rule] = []
    for one in base:
        match = inside_region(one.match, region)
        if match is None:
            continue
        fields = rule_fields(one.release, one.standby)
        rule = Rule(mode="serve", match=match, below=one.below, salt=one.salt, windows=one.windows, **fields)
        if any(_hides(earlier, rule) and not _may_be_passed_over(earlier, condemned) for earlier in rules):
            continue
        joined = _joined(rules[-1], rule) if rules else None
        if joined is not None:
            rules[-1] = joined
        else:
            rules.append(rule)
    return rules


def _hides(earlier: Rule, later: Rule) -> bool:
    whole = earlier.below >= cohort.BUCKETS or (
        bool(earlier.salt) and earlier.salt == later.salt and earlier.below >= later.below
    )
    return whole and covers(earlier.match, later.match)


def _may_be_passed_over(rule: Rule, condemned: Iterable[Condemned]) -> bool:
    """Whether a device could read on past this rule, because its release is condemned there."""
    return any(
        any(_condemns(one, given) for given in said_by(rule)[:1]) and not selector.disjoint(one.match, rule.match)
        for one in condemned
    )


def _condemns(entry: Condemned, given: ReleaseIn) -> bool:
    release = entry.release is None or entry.release.digest == given.digest
    return release and entry.environment in (None, given.environment)


def _joined(one: Rule, other: Rule) -> Rule | None:
    """Two neighbours that say the same of two segments, as one."""
    if said_by(one) != said_by(other) or (one.below, one.salt, one.windows) != (other.below, other.salt, other.windows):
        return None
    match = union(one.match, other.match)
    return None if match is None else msgspec.structs.replace(one, match=match)


def _condemned_in(standing: Standing, region: str) -> list[Condemned]:
    return [
        Condemned(incident=one.incident, match=match, release=one.release, environment=one.environment)
        for one in standing.condemned
        if (match := inside_region(one.match, region)) is not None
    ]


def _merged(entries: Iterable[Condemned]) -> list[Condemned]:
    """The same condemnations in fewer entries; a merged one has the name of its first incident."""
    kept: list[Condemned] = []
    for entry in entries:
        for index, earlier in enumerate(kept):
            if (earlier.release, earlier.environment) == (entry.release, entry.environment):
                match = union(earlier.match, entry.match)
                if match is not None:
                    kept[index] = msgspec.structs.replace(earlier, match=match)
                    break
        else:
            kept.append(entry)
    return kept


def _fits(body: Body) -> bool:
    return (
        len(body.rules) <= RULES_MAX
        and len(body.condemned) <= CONDEMNED_MAX
        and body.size_bytes <= PAYLOAD_BYTES_MAX - _FRAME_BYTES
    )


def _smaller(body: Body, omitted: list[str]) -> Body:
    """One entry less, by the order in the module's docstring."""
    crowded = len(body.condemned) > CONDEMNED_MAX or len(body.rules) <= RULES_MAX
    spare = next((one for one in body.condemned if _moves_nobody(one, body.rules)), None) if crowded else None
    if spare is not None:
        omitted.append(f"condemnation {spare.incident}: the rules alone keep its release away")
        return msgspec.structs.replace(body, condemned=tuple(one for one in body.condemned if one is not spare))
    rule = next((one for at, one in enumerate(body.rules) if _leads_nowhere(at, body)), None) or body.rules[-1]
    version = rule.release.version if rule.release is not None else "nothing"
    omitted.append(f"rule {selector.written(rule.match)} → {version}: its devices keep what they run")
    return msgspec.structs.replace(body, rules=tuple(one for one in body.rules if one is not rule))


def _moves_nobody(entry: Condemned, rules: Iterable[Rule]) -> bool:
    """Whether without this condemnation still no rule would give what it condemns to a device it is about."""
    for rule in rules:
        if any(_condemns(entry, one) for one in said_by(rule)):
            if not selector.disjoint(rule.match, entry.match):
                return False
        elif rule.mode == "serve" and rule.below >= cohort.BUCKETS and covers(rule.match, entry.match):
            return True
    return True


def _leads_nowhere(at: int, body: Body) -> bool:
    """Whether without this rule its devices keep what they run: all that later rules would give them is condemned there."""
    rule = body.rules[at]
    return (
        all(
            selector.disjoint(later.match, rule.match)
            or said_by(later)[:1] == said_by(rule)[:1]
            or any(
                _condemns(one, given) and covers(one.match, rule.match)
                for one in body.condemned
                for given in said_by(later)[:1]
            )
            for later in body.rules[at + 1 :]
        )
        and at < len(body.rules) - 1
    )
