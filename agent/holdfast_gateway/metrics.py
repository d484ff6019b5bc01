"""`/metrics`: what this gateway counted, in the names that Triton and KServe gave such numbers, and in ours for the rest.

Labels are bounded by what the gateway remembers: a pipeline, and a release's version of it. Triton's counters have no
`_total` in their names; ours do. Sources: github.com/triton-inference-server/server, docs/user_guide/metrics.md;
github.com/kserve/kserve, python/kserve/kserve/metrics.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from holdfast_gateway.counts import Counts
from holdfast_gateway.exposition import Family, Sample, encode
from holdfast_gateway.pipeline import Pipeline
from holdfast_gateway.slot import Slot
from holdfast_gateway.windows import Ledger
from holdfast_shared import __version__, cohort
from holdfast_shared.histogram import Histogram, merged, value_ms

# Prometheus' own default bounds, which KServe keeps, and finer ones below: a small model answers in less than 5 ms. A latency
# is known within 1 %, and so is on which side of a bound it lies.
BOUNDS_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_SHARE: Final = (
    "Share of the requests, or of a segment of them, that the release on trial is given; nothing without one"
)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _Version(NamedTuple):
    """All counts of one release's version, in whatever environment."""

    labels: Mapping[str, str]
    counts: tuple[Counts, ...]

    def sum(self, of: Callable[[Counts], int]) -> int:
        return sum(of(one) for one in self.counts)


class Metrics:
    """`encoded` is the whole answer, put together anew at every look."""

    def __init__(self, pipelines: Mapping[str, Pipeline], ledger: Ledger) -> None:
        self._pipelines = pipelines
        self._ledger = ledger
        self._started_at = time.time()

    def encoded(self) -> bytes:
        versions = self._versions()
        return encode(
            (
                *_in_tritons_names(versions),
                *self._in_kserves_names(),
                *_in_our_names(versions),
                *self._of_pipelines(),
                *self._of_slots(),
                *_of_this_process(self._started_at),
            )
        )

    def _versions(self) -> list[_Version]:
        found: dict[tuple[str, str], list[Counts]] = {}
        for counts in self._ledger.counts:
            found.setdefault((counts.pipeline, counts.target.release.version), []).append(counts)
        return [
            _Version({"model": pipeline, "version": version}, tuple(counts))
            for (pipeline, version), counts in sorted(found.items())
        ]

    def _in_kserves_names(self) -> list[Family]:
        samples: list[Sample] = []
        by_pipeline: dict[str, list[Histogram]] = {}
        for counts in self._ledger.counts:
            by_pipeline.setdefault(counts.pipeline, []).append(counts.totals.histogram())
        for pipeline, histograms in sorted(by_pipeline.items()):
            samples += _histogram({"model_name": pipeline}, merged(histograms))
        told = "Seconds that a worker had for one attempt at a request; the sum is exact within 1 percent"
        return [Family("request_predict_seconds", "histogram", told, tuple(samples))]

    def _of_pipelines(self) -> list[Family]:
        refused = [
            Sample({"model": name, "reason": reason}, count)
            for name, pipeline in sorted(self._pipelines.items())
            for reason, count in pipeline.refused.items()
        ]
        unmatched = [Sample({"model": name}, one.recent.unmatched) for name, one in sorted(self._pipelines.items())]
        answers = [
            Sample({"model": name, "version": slot.version}, slot in pipeline.answering)
            for name, pipeline in sorted(self._pipelines.items())
            for slot in _one_of_each_version(pipeline)
        ]
        shares = [
            Sample({"model": name, "version": serving.release.version}, share.requests.share / cohort.BUCKETS)
            for name, pipeline in sorted(self._pipelines.items())
            if (share := pipeline.share) is not None and (serving := pipeline.wanted.serving) is not None
        ]
        return [
            _counter("holdfast_refused_total", "Requests that no worker was asked, by why", refused),
            _counter("holdfast_unmatched_labels_total", "Feedback for which no prediction waited", unmatched),
            Family("holdfast_serving", "gauge", "1 for a release that answers requests now", tuple(answers)),
            Family("holdfast_request_share", "gauge", _SHARE, tuple(shares)),
        ]

    def _of_slots(self) -> list[Family]:
        ready: list[Sample] = []
        memory: list[Sample] = []
        for name, pipeline in sorted(self._pipelines.items()):
            for slot in pipeline.slots.values():
                labels = {"model": name, "version": slot.version, "environment": slot.target.environment}
                ready.append(Sample(labels, slot.state == "ready"))
                memory.append(Sample(labels, slot.memory_bytes()))
        unread = (Sample({}, len(self._ledger.closed)),)
        return [
            Family("holdfast_slot_ready", "gauge", "1 for a loaded release that could answer", tuple(ready)),
            Family("holdfast_worker_memory_bytes", "gauge", "Resident memory of a slot's worker now", tuple(memory)),
            Family("holdfast_windows_unread", "gauge", "Closed windows that the agent has not taken yet", unread),
        ]


def _in_tritons_names(versions: Iterable[_Version]) -> list[Family]:
    versions = list(versions)

    def each(of: Callable[[Counts], int]) -> list[Sample]:
        return [Sample(version.labels, version.sum(of)) for version in versions]

    failures = [
        Sample({**version.labels, "reason": reason}, version.sum(of))
        for version in versions
        for reason, of in _FAILURES.items()
    ]
    return [
        _counter("nv_inference_request_success", "Requests that this release answered well", each(_answered)),
        _counter("nv_inference_request_failure", "Requests that this release did not answer well, by why", failures),
        _counter("nv_inference_count", "Inferences; a batch counts as one", each(_answered)),
        _counter("nv_inference_exec_count", "Requests that reached a worker", each(lambda one: one.totals.requests)),
        *(_counter(name, told, each(of)) for name, told, of in _DURATIONS),
    ]


def _answered(counts: Counts) -> int:
    return counts.life.answered


_FAILURES: Final[dict[str, Callable[[Counts], int]]] = {
    "BACKEND": lambda one: one.totals.errors + one.totals.nulls,
    "REJECTED": lambda one: one.life.rejected,
    "CANCELED": lambda one: one.life.abandoned,
    "OTHER": lambda one: one.totals.input_faults,
}
_DURATIONS: Final[tuple[tuple[str, str, Callable[[Counts], int]], ...]] = (
    (
        "nv_inference_request_duration_us",
        "Microseconds from the whole request to its answer, of what was answered well",
        lambda one: one.life.request_us,
    ),
    ("nv_inference_queue_duration_us", "Of that, until the worker had its turn", lambda one: one.life.queue_us),
    (
        "nv_inference_compute_infer_duration_us",
        "Of that, the model's own time",
        lambda one: one.life.compute_us,
    ),
)


def _in_our_names(versions: Iterable[_Version]) -> list[Family]:
    versions = list(versions)
    return [
        _counter(name, told, [Sample(version.labels, version.sum(of)) for version in versions])
        for name, told, of in _OURS
    ]


# Of a release that shadows; each by its name in `Comparisons.totals`.
_SHADOWS: Final = (
    ("requests", "Requests that a release which shadows was asked, and whose fate is known"),
    ("dropped", "Requests that it was never asked: it had fallen behind, or was not there"),
    ("errors", "Of those it was asked, the ones at which it crashed, hung or raised"),
    ("nulls", "Those that it answered null"),
    ("incomparable", "Those whose two answers have not the same outputs"),
    ("compared", "Rows whose two answers were compared"),
    ("agreed", "Of those, the ones that agree"),
)
_OURS: Final[tuple[tuple[str, str, Callable[[Counts], int]], ...]] = (
    ("holdfast_errors_total", "Attempts that crashed, hung or raised", lambda one: one.totals.errors),
    ("holdfast_hangs_total", "Attempts that were past their deadline", lambda one: one.totals.hangs),
    ("holdfast_nulls_total", "Attempts that were answered null", lambda one: one.totals.nulls),
    (
        "holdfast_failovers_total",
        "Requests that another slot answered instead",
        lambda one: one.totals.failed_over,
    ),
    (
        "holdfast_input_faults_total",
        "Requests that were at fault themselves, or failed in both slots",
        lambda one: one.totals.input_faults,
    ),
    ("holdfast_labelled_total", "Predictions whose true class was told", lambda one: one.totals.labelled),
    ("holdfast_agreed_total", "Of those, the ones that were right", lambda one: one.totals.agreed),
    ("holdfast_worker_starts_total", "Workers that were started", lambda one: one.life.starts),
    *(
        (f"holdfast_shadow_{name}_total", told, lambda one, name=name: getattr(one.shadow.totals, name))
        for name, told in _SHADOWS
    ),
    ("holdfast_worker_losses_total", "Workers that crashed, hung or were killed", lambda one: one.life.losses),
)


def _of_this_process(started_at: float) -> list[Family]:
    """In the names that every Prometheus client library has."""
    used = os.times()
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return [
        Family("holdfast_build_info", "gauge", "Always 1", (Sample({"version": __version__}, 1),)),
        _counter("process_cpu_seconds_total", "Processor time", [Sample({}, used.user + used.system)]),
        Family("process_resident_memory_bytes", "gauge", "Resident memory", (Sample({}, pages * _PAGE_BYTES),)),
        Family("process_start_time_seconds", "gauge", "Since the epoch", (Sample({}, round(started_at, 3)),)),
    ]


def _one_of_each_version(pipeline: Pipeline) -> list[Slot]:
    """The first choice of each: two environments of one release have the same version."""
    found: dict[str, Slot] = {}
    for slot in (*pipeline.usable, *pipeline.slots.values()):
        found.setdefault(slot.version, slot)
    return list(found.values())


def _histogram(labels: Mapping[str, str], histogram: Histogram) -> list[Sample]:
    total = histogram.count
    within = [(str(bound), total - histogram.count_above(bound * 1000)) for bound in BOUNDS_S]
    seconds = sum(value_ms(index) * count for index, count in histogram.bins) / 1000
    return [
        *(Sample({**labels, "le": bound}, count, "_bucket") for bound, count in (*within, ("+Inf", total))),
        Sample(labels, seconds, "_sum"),
        Sample(labels, total, "_count"),
    ]


def _counter(name: str, told: str, samples: Iterable[Sample]) -> Family:
    return Family(name, "counter", told, tuple(samples))
