"""`holdfast.report/1`: what a device says of itself, signed with its own key. Reported state always wins over desired.

Unique by (device, incarnation, number), accepted in any order. Windows are counted on the device and are unique by
(device, incarnation, pipeline, window): merging them is idempotent by that key.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Final, Literal

import msgspec

from holdfast_shared.histogram import Histogram
from holdfast_shared.identifiers import CounterField, DeviceField, EnvironmentField, NameField, TextField
from holdfast_shared.wire.assignment import ReleaseRef, Requests, Scope

TYPE: Final = "holdfast.report/1"
PAYLOAD_BYTES_MAX: Final = 128 * 1024
ENVELOPE_BYTES_MAX: Final = 192 * 1024
WINDOWS_MAX: Final = 64
EVENTS_MAX: Final = 64
# Of one release. More would crowd out the counts that a report is for.
DRIFT_FEATURES_MAX: Final = 8
DRIFT_BINS_MAX: Final = 16
# Confidence and margin lie in 0…1 and are counted in so many equal bins.
SCORE_BINS: Final = 20
# How far a shadow's answer lies from the serving one: the largest difference of any two numbers of one request. The first bin
# is "the same", the last "by more than 1"; between them a decade each.
DIFFERENCE_EDGES: Final = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
DIFFERENCE_BINS: Final = len(DIFFERENCE_EDGES) + 1
# Rows of one answer that are measured, and may be labelled.
LABELS_MAX: Final = 64

State = Literal["idle", "fetching", "staged", "self_testing", "trial", "shadowing", "falling_back"]
EventKind = Literal[
    "accepted",
    "refused",
    "fetch_failed",
    "staged",
    "self_test_failed",
    "activated",
    "committed",
    "fell_back",
    "rolled_back",
    "condemned_here",
    "worker_lost",
    "degraded",
    "restarted",
    "stay",
    "removed",
    "guardrail",
]
Protection = Literal["user", "priority", "memory", "tasks", "programs", "network", "system", "files"]
Incarnation = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]


class Isolation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands between a model and the rest of its device, by protection: a `Protection`, or one of a later version.

    `applied` says by which mechanism, `degraded` why there is none.
    """

    applied: Annotated[dict[NameField, TextField], msgspec.Meta(max_length=32)] = {}
    degraded: Annotated[dict[NameField, TextField], msgspec.Meta(max_length=32)] = {}


class SlotReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A slot as the device has it. `ready` is what the gateway says of its worker."""

    release: ReleaseRef
    environment: EnvironmentField
    ready: bool = False
    unproven: bool = False


class CondemnedHere(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Condemned by the device itself; lifted only by a `retry` with a higher attempt."""

    release: ReleaseRef
    environment: EnvironmentField
    attempt: CounterField
    code: str
    at: CounterField = 0


class AcceptedDocument(msgspec.Struct, frozen=True, kw_only=True):
    scope: Scope
    pipeline: NameField
    epoch: CounterField
    seq: CounterField


class PipelineReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One pipeline: `serving` is the slot that answers requests now, as the *gateway* confirms it."""

    pipeline: NameField
    state: State
    serving: SlotReport | None = None
    current: SlotReport | None = None
    previous: SlotReport | None = None
    candidate: SlotReport | None = None
    condemned_here: tuple[CondemnedHere, ...] = ()
    single: bool = False
    degraded: bool = False
    requests: Requests | None = None  # on trial with these alone; `current` answers the others
    waiting_for: TextField = ""  # why the device stays where it is, in words


_Counts = Annotated[tuple[CounterField, ...], msgspec.Meta(min_length=2, max_length=DRIFT_BINS_MAX)]
_ScoreBins = Annotated[tuple[CounterField, ...], msgspec.Meta(max_length=SCORE_BINS)]


class DriftCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of the release's `reference`: how many rows fell into each bin, here and in the publisher's sample."""

    feature: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    counts: _Counts
    expected: _Counts

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.expected):
            raise ValueError("counts and expected have the same bins")


class ShadowCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a release that shadowed made of the requests that the serving one had answered well: each is in `requests`, once
    its fate is known, or in `dropped`, never asked.

    `errors` crashed, hung or raised; `nulls` were null; `incomparable` are those whose two answers have not the same outputs.
    Of all others `compared` and `agreed` count *rows*; `difference` counts those requests by DIFFERENCE_EDGES, `latency` and
    `serving_latency` by what the two models took to compute. The score bins are a window's, of the rows compared.
    """

    requests: CounterField = 0
    dropped: CounterField = 0
    errors: CounterField = 0
    hangs: CounterField = 0
    nulls: CounterField = 0
    incomparable: CounterField = 0
    compared: CounterField = 0
    agreed: CounterField = 0
    difference: Annotated[tuple[CounterField, ...], msgspec.Meta(max_length=DIFFERENCE_BINS)] = ()
    latency: Histogram = Histogram()
    serving_latency: Histogram = Histogram()
    confidence: _ScoreBins = ()
    margin: _ScoreBins = ()
    serving_confidence: _ScoreBins = ()
    serving_margin: _ScoreBins = ()


class Window(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts of one slot over one stretch of time. `latency` is of every attempt that reached the worker.

    `requests` counts attempts at this slot; `errors` those that crashed, hung or raised; `nulls` those answered null;
    `input_faults` (4xx, or failed in both slots) count against nobody and are not in `requests`; `failed_over` are the
    requests that the other slot answered instead. `memory_bytes_max` is the most that two measurements of its worker's resident
    memory in a row, a second apart, both reached: a moment's peak is nobody's fault.

    `labelled` are predictions whose true class an application told since, `agreed` those that were right. `confidence` (the
    largest score) and `margin` (its lead) are counts of rows in SCORE_BINS equal bins of 0…1; both are empty without `scores`.
    """

    window: CounterField
    pipeline: NameField
    release: ReleaseRef
    environment: EnvironmentField
    opened_at: CounterField
    closed_at: CounterField
    requests: CounterField = 0
    errors: CounterField = 0
    nulls: CounterField = 0
    hangs: CounterField = 0
    input_faults: CounterField = 0
    failed_over: CounterField = 0
    latency: Histogram = Histogram()
    memory_bytes_max: CounterField = 0
    labelled: CounterField = 0
    agreed: CounterField = 0
    confidence: _ScoreBins = ()
    margin: _ScoreBins = ()
    drift: Annotated[tuple[DriftCounts, ...], msgspec.Meta(max_length=DRIFT_FEATURES_MAX)] = ()
    shadow: ShadowCounts | None = None  # of a release that shadowed; all else is of one that answered


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened once. Monotonic times are microseconds of CLOCK_MONOTONIC under `boot`.

    For `fell_back`, `began_monotonic_us` is the first breaching answer and `at_monotonic_us` the first moment that the
    good slot served.
    """

    kind: EventKind
    at: CounterField
    at_monotonic_us: CounterField
    boot: str
    pipeline: str = ""
    release: ReleaseRef | None = None
    environment: str = ""
    code: str = ""  # a stable failure code
    detail: TextField = ""
    began_monotonic_us: CounterField | None = None


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant of a model may ask for, as the device finds it in itself: see `holdfast_shared.variants.Machine`."""

    architecture: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    memory_bytes: CounterField
    runtimes: Annotated[tuple[NameField, ...], msgspec.Meta(max_length=16)] = ()
    accelerators: Annotated[tuple[TextField, ...], msgspec.Meta(max_length=16)] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """One signed statement. `health` comes at every interval; `event` as soon as something happened."""

    fleet: NameField
    device: DeviceField
    incarnation: Incarnation
    number: CounterField
    kind: Literal["health", "event"]
    sent_at: CounterField
    sent_monotonic_us: CounterField
    boot: str
    membership_counter: CounterField
    agent_version: str
    fingerprint: dict[str, str] = {}
    isolation: Isolation | None = None  # what is true of every worker that runs; None: no gateway has told yet
    accepted: tuple[AcceptedDocument, ...] = ()
    pipelines: tuple[PipelineReport, ...] = ()
    windows: Annotated[tuple[Window, ...], msgspec.Meta(max_length=WINDOWS_MAX)] = ()
    events: Annotated[tuple[Event, ...], msgspec.Meta(max_length=EVENTS_MAX)] = ()
    critical: tuple[str, ...] = ()
    machine: MachineFacts | msgspec.UnsetType = msgspec.UNSET  # an older agent's reports say nothing of it


def difference_bin(value: float) -> int:
    """Where in `ShadowCounts.difference` a request is counted."""
    return bisect_left(DIFFERENCE_EDGES, value)
