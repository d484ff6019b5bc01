"""The rules that stand when no rollout runs: what finished rollouts and rollbacks leave behind, newest first.

Read like a document: the first rule that matches a device is its release. A newer rule stands before those it narrows, and
what it wholly covers is dropped, so a fleet that is uniform again has one rule again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from holdfast_server.core.plan import Plan
from holdfast_server.core.release_in import ReleaseIn, Taken, distinct
from holdfast_server.core.segments import Match, conjunction, covers
from holdfast_shared import cohort, selector
from holdfast_shared.wire.assignment import Windows


class BaseRule(msgspec.Struct, frozen=True, kw_only=True):
    """`cause` is the rollout or rollback that left it. `standby`: what it replaced, which refills an empty `previous`.

    `windows` are its rollout's: a device that comes late keeps to them. Going back has none.
    """

    match: Match
    release: ReleaseIn
    cause: str
    standby: ReleaseIn | None = None
    below: int = cohort.BUCKETS
    salt: str = ""
    windows: Windows | None = None

    def covers(self, other: BaseRule) -> bool:
        """Whether no device can reach `other` past this rule."""
        whole = self.below >= cohort.BUCKETS
        nested = self.salt == other.salt and self.below >= other.below and bool(other.salt)
        return (whole or nested) and covers(self.match, other.match)


def tidied(rules: Iterable[BaseRule]) -> tuple[BaseRule, ...]:
    """Without the rules that one before them covers."""
    kept: list[BaseRule] = []
    for rule in rules:
        if not any(earlier.covers(rule) for earlier in kept):
            kept.append(rule)
    return tuple(kept)


def folded(rules: Sequence[BaseRule], plan: Plan) -> tuple[BaseRule, ...]:
    """After the rollout finished: each device it reached has its release as base, and no other device has."""
    added = []
    for wave in reversed(plan.waves):
        whole = wave.below >= cohort.BUCKETS
        added.append(
            BaseRule(
                match=wave.match,
                release=plan.release,
                cause=plan.rollout,
                standby=release_for(rules, wave.match),
                below=cohort.BUCKETS if whole else wave.below,
                salt="" if whole else plan.rollout,
                windows=plan.windows,
            )
        )
    return tidied([*tidied(added), *rules])


def taken_back(
    rules: Sequence[BaseRule], segment: Match, taken: Taken, goals: Sequence[ReleaseIn], *, cause: str
) -> tuple[BaseRule, ...]:
    """After what was `taken` back from `segment`: exactly the devices that had it as base there have the first of `goals`.

    Where only an environment is taken back, a release goes on as the goal that is of it. A device of the segment with another
    base is not moved. Where it is nobody's base, it was on its way by a rollout, and the first goal becomes the segment's base
    only if it is not that already.
    """
    first = goals[0]
    changed: list[BaseRule] = []
    found = False
    for rule in rules:
        both = conjunction(segment, rule.match)
        if both is not None and taken.holds(rule.release):
            found = True
            to = next((one for one in goals if one.digest == rule.release.digest), first)
            changed.append(
                BaseRule(
                    match=both,
                    release=to,
                    cause=cause,
                    standby=_other(rule.standby, to),
                    below=rule.below,
                    salt=rule.salt,
                )
            )
        changed.append(rule)
    if not found and {one.key for one in releases_in(rules, segment)} != {first.key}:
        changed.insert(0, BaseRule(match=segment, release=first, cause=cause, standby=release_for(rules, segment)))
    return tidied(changed)


def _other(standby: ReleaseIn | None, release: ReleaseIn) -> ReleaseIn | None:
    return None if standby is None or standby.key == release.key else standby


def releases_in(rules: Iterable[BaseRule], segment: Match) -> list[ReleaseIn]:
    """What devices of the segment may have as base, first rule first, each once."""
    return distinct(rule.release for rule in rules if not selector.disjoint(rule.match, segment))


def release_for(rules: Iterable[BaseRule], segment: Match) -> ReleaseIn | None:
    """The one release that is the base of the whole segment; None when there is none, or more than one."""
    for rule in rules:
        if not selector.disjoint(rule.match, segment):
            return rule.release if rule.below >= cohort.BUCKETS and covers(rule.match, segment) else None
    return None


def returns_to(rules: Iterable[BaseRule], segment: Match, taken: Taken) -> list[ReleaseIn]:
    """What the segment ran before: what its base rules replaced, or, while it is on its way, the base itself."""
    mine = [rule for rule in rules if not selector.disjoint(rule.match, segment)]
    replaced = [rule.standby for rule in mine if taken.holds(rule.release) and rule.standby is not None]
    others = [rule.release for rule in mine if not taken.holds(rule.release)]
    return distinct(replaced or others)
