"""`holdfast.command/1`: an operator's signed write, the same over HTTP and MQTT.

Unlike the other documents it refuses unknown fields: a typo in a rollback must not be ignored.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from holdfast_shared.identifiers import CounterField, DigestField, NameField
from holdfast_shared.selector import LabelField, Selector
from holdfast_shared.semver import VersionField
from holdfast_shared.wire.assignment import Requests, ShareField, Windows
from holdfast_shared.wire.release import Metric

TYPE: Final = "holdfast.command/1"
ENVELOPE_BYTES_MAX: Final = 64 * 1024
# A command is for now: an old one that turns up again is refused.
LIFETIME_MAX_S: Final = 900
WAVES_MAX: Final = 16

CommandId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
# `system`, a digest, or `<name>@<version>`, which the server looks up.
EnvironmentName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
RolloutId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]


class WavePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step: of the devices in `regions` (empty: all of the segment) with `labels`, the share in 1/10 000.

    `requests`: the share of their requests that the release is given; None: as the plan says, and else all.
    """

    share: ShareField
    regions: tuple[NameField, ...] = ()
    labels: dict[LabelField, LabelField] = {}
    requests: ShareField | None = None


class GatePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition for going on: milliseconds for latency_ms_p99, a share of 1 for rates."""

    metric: Metric
    threshold: Annotated[float, msgspec.Meta(ge=0)]


class ShadowPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The release only shadows. A device passes when so great a share of at least `rows_min` rows agrees, over so many hours."""

    agreement_min: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.99
    rows_min: Annotated[int, msgspec.Meta(ge=1)] = 1000
    hours_min: Annotated[int, msgspec.Meta(ge=0, le=29 * 24)] = 72


class RolloutPlan(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="verb",
    tag="rollout-plan",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Ask for a rollout. What is left out is the planner's default: waves, gates, minimums."""

    pipeline: NameField
    version: VersionField
    segment: Selector = ()
    waves: Annotated[tuple[WavePlan, ...], msgspec.Meta(max_length=WAVES_MAX)] = ()
    gates: tuple[GatePlan, ...] = ()
    devices_min: Annotated[int, msgspec.Meta(ge=1)] | None = None  # that must reach a verdict in each wave
    requests_min: Annotated[int, msgspec.Meta(ge=1)] | None = None  # per device, before it counts
    soak_s: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)] | None = None
    deadline_s: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)] | None = None  # of one wave
    environment: EnvironmentName | None = None  # None: the one that the release prefers
    requests: Requests | None = None
    windows: Windows | None = None
    spread_s: CounterField | None = None
    shadow: ShadowPlan | None = None  # instead of serving, and of gates


class RolloutStart(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="rollout-start", forbid_unknown_fields=True
):
    rollout: RolloutId


class RolloutPause(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="rollout-pause", forbid_unknown_fields=True
):
    rollout: RolloutId


class RolloutResume(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="rollout-resume", forbid_unknown_fields=True
):
    rollout: RolloutId


class RolloutAbort(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="rollout-abort", forbid_unknown_fields=True
):
    rollout: RolloutId


class Rollback(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="verb",
    tag="rollback",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Take `version` back from `segment`, to `to`. With one signature it waits for `approve`; with two it acts.

    With `environment`, only that is left: the same version goes on in `to_environment` (None: in what the segment ran it in
    before, else in the first other that it names). Both are `system`, a digest, or `<name>@<version>`. With `every_version`, no
    version of the pipeline runs in it there any more: each that did goes on in another that it names.
    """

    pipeline: NameField
    version: VersionField
    reason: Reason
    to: VersionField | None = None  # None: what the segment ran before
    segment: Selector = ()
    environment: EnvironmentName | None = None
    to_environment: EnvironmentName | None = None
    every_version: bool = False


class Approve(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="approve", forbid_unknown_fields=True):
    """A second person's yes to exactly the request with this payload digest."""

    rollback: RolloutId
    request: DigestField


Act = RolloutPlan | RolloutStart | RolloutPause | RolloutResume | RolloutAbort | Rollback | Approve


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE, forbid_unknown_fields=True):
    """`id` is random and accepted once."""

    fleet: NameField
    id: CommandId
    issued_at: CounterField
    not_after: CounterField
    act: Act


def verb_of(act: Act) -> str:
    """The word in the topic and on the command line."""
    return str(act.__struct_config__.tag)
