"""What documents mean for one device. One pure function, asked by the device with what it has and by the server with what the
device last reported, so that the server's prediction and the device's decision are the same code.

It never looks at a clock, a network or a disk. Whether the target can be fetched, fits the hardware, or may start now are
preconditions of *acting*, checked elsewhere and again and again; an unfit target means "stay and report", never the next rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from holdfast_shared import cohort, selector
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.assignment import Assignment, ReleaseRef, Requests, Rule, Windows

Reason = Literal["rule", "kept", "nothing-assigned", "removed"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot holds: a release in an environment."""

    release: ReleaseRef
    environment: str = SYSTEM_ENVIRONMENT

    @property
    def key(self) -> str:
        """One word for it: the pair of digests that the record and the gateway know it by."""
        return f"{self.release.digest}@{self.environment}"

    @property
    def digests(self) -> frozenset[str]:
        """The manifests that must be on the disk, with all they name: the release's, and its environment's if it has one."""
        own = self.environment != SYSTEM_ENVIRONMENT
        return frozenset((self.release.digest, self.environment)) if own else frozenset((self.release.digest,))


class LocalCondemnation(msgspec.Struct, frozen=True, kw_only=True):
    """A pair the device itself condemned, at the attempt it was then allowed."""

    target: Target
    attempt: int = 0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What `assign` knows of a device for one pipeline: `labels` are the membership's selectable labels."""

    device: str
    labels: Mapping[str, str]
    current: Target | None = None
    previous: Target | None = None
    candidate: Target | None = None  # in trial: it serves
    condemned_here: tuple[LocalCondemnation, ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the device should do of one pipeline.

    `serve` None: keep what runs, install nothing. `stage`: fetch and self-test, never activate. `urgent`: what serves now is
    condemned, so windows, spread and soak do not apply. `stopgap`: what may serve while an urgent target is fetched.
    """

    serve: Target | None = None
    reason: Reason = "nothing-assigned"
    standby: Target | None = None
    stage: tuple[Target, ...] = ()
    shadow: Target | None = None
    remove: bool = False
    urgent: bool = False
    stopgap: Target | None = None
    requests: Requests | None = None
    spread_s: int | None = None
    not_before: int | None = None
    windows: Windows | None = None


KEEP_WHAT_RUNS: Final = Decision()


def assign(documents: Sequence[Assignment], view: View) -> Decision:
    """The decision of `documents` (one pipeline's: the device's own and its region's, in any order) for `view`. Total."""
    ordered = sorted(documents, key=lambda document: (document.scope.device is None, document.scope.key))
    applying = [rule for document in ordered for rule in document.rules if _applies(rule, view)]
    serving = view.candidate or view.current
    urgent = serving is not None and condemned_by_documents(ordered, view, serving)
    chosen = _first_serving(applying, ordered, view)
    staged = _staged(applying, ordered, view)
    shadow = next(
        (t for rule in applying if rule.mode == "shadow" and (t := _target(rule)) and not condemned(ordered, view, t)),
        None,
    )
    if chosen is None:
        removal = next((rule for rule in applying if rule.mode in ("serve", "keep", "remove")), None)
        return Decision(
            reason="removed" if removal is not None and removal.mode == "remove" else "nothing-assigned",
            remove=removal is not None and removal.mode == "remove",
            stage=staged,
            shadow=shadow,
            urgent=urgent,
            stopgap=_stopgap(ordered, view, serving) if urgent else None,
        )
    rule, target = chosen
    return Decision(
        serve=target,
        reason="kept" if rule.mode == "keep" else "rule",
        standby=_standby(rule, ordered, view, target),
        stage=staged,
        shadow=shadow,
        urgent=urgent,
        stopgap=_stopgap(ordered, view, serving) if urgent else None,
        requests=rule.requests,
        spread_s=rule.spread_s,
        not_before=rule.not_before,
        windows=rule.windows,
    )


def condemned(documents: Iterable[Assignment], view: View, target: Target) -> bool:
    """Whether `target` may not run on this device: condemned in a document for it, or here and not retried since."""
    documents = tuple(documents)
    return condemned_by_documents(documents, view, target) or condemned_here(documents, view, target)


def condemned_by_documents(documents: Iterable[Assignment], view: View, target: Target) -> bool:
    """Whether a condemnation that matches this device names the release, the environment, or the pair."""
    return any(
        (entry.release is None or entry.release.digest == target.release.digest)
        and (entry.environment is None or entry.environment == target.environment)
        and selector.holds(entry.match, view.labels)
        for document in documents
        for entry in document.condemned
    )


def condemned_here(documents: Iterable[Assignment], view: View, target: Target) -> bool:
    """Whether the device condemned the pair itself, and no `retry` for it has a higher attempt number."""
    mine = [entry.attempt for entry in view.condemned_here if entry.target.key == target.key]
    return bool(mine) and attempt_allowed(documents, view, target.release.digest) <= max(mine)


def attempt_allowed(documents: Iterable[Assignment], view: View, digest: str) -> int:
    """The highest attempt number that a `retry` for this device gives the release; 0 without one."""
    return max(
        (
            retry.attempt
            for document in documents
            for retry in document.retry
            if retry.release.digest == digest and selector.holds(retry.match, view.labels)
        ),
        default=0,
    )


def _applies(rule: Rule, view: View) -> bool:
    if rule.below < cohort.BUCKETS and cohort.bucket(rule.salt, view.device) >= rule.below:
        return False
    if not selector.holds(rule.match, view.labels):
        return False
    if rule.mode != "keep":
        return True
    serving = view.candidate or view.current
    return rule.release is not None and serving is not None and serving.release.digest == rule.release.digest


def _first_serving(applying: Sequence[Rule], documents: Sequence[Assignment], view: View) -> tuple[Rule, Target] | None:
    """The first applying `serve` or `keep` that is not condemned, unless a `remove` comes before it."""
    for rule in applying:
        if rule.mode == "remove":
            return None
        target = _target(rule)
        if rule.mode in ("serve", "keep") and target is not None:
            if rule.mode == "keep":  # keeps the pair that serves, whatever environment it serves in
                target = view.candidate or view.current or target
            if not condemned(documents, view, target):
                return rule, target
    return None


def _target(rule: Rule) -> Target | None:
    if rule.release is None:
        return None
    return Target(release=rule.release, environment=rule.environment or SYSTEM_ENVIRONMENT)


def _standby(rule: Rule, documents: Sequence[Assignment], view: View, target: Target) -> Target | None:
    if rule.standby is None:
        return None
    standby = Target(release=rule.standby, environment=rule.standby_environment or SYSTEM_ENVIRONMENT)
    return None if standby.key == target.key or condemned(documents, view, standby) else standby


def _staged(applying: Sequence[Rule], documents: Sequence[Assignment], view: View) -> tuple[Target, ...]:
    targets = (_target(rule) for rule in applying if rule.mode == "stage")
    return tuple(target for target in targets if target is not None and not condemned(documents, view, target))


def _stopgap(documents: Sequence[Assignment], view: View, serving: Target | None) -> Target | None:
    """`current` under a condemned candidate, else `previous`: whichever is there and may run."""
    for slot in (view.current, view.previous):
        if slot is not None and (serving is None or slot.key != serving.key) and not condemned(documents, view, slot):
            return slot
    return None
