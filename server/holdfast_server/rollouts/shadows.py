"""What a release that shadowed made of the requests that others answered: its devices' windows of the last days, summed.

Each window counts once, whatever was sent again, and is bounded by what its device can have asked: nobody's word weighs more
than its own windows. Drift is of the answers: the shadow's score bins against the serving release's, for the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from holdfast_server.ingest.rows import Measures
from holdfast_server.rollouts import storage
from holdfast_server.store.schema import windows
from holdfast_shared.drift import ROWS_MIN, stability_index
from holdfast_shared.histogram import Histogram, merged
from holdfast_shared.wire.report import ShadowCounts

HOUR_US: Final = 3600 * 1_000_000
# A week, with its weekend. Older windows say how it was, and the newest how it is.
LOOK_BACK_HOURS: Final = 7 * 24
# The newest are looked at: what ten devices say in a week, decoded in a second. Of more devices it is less than a week.
WINDOWS_MAX: Final = 100_000
# Of one device, which is looked at while it is waited for.
DEVICE_HOURS: Final = 24
_measures: Final[msgspec.json.Decoder[Measures]] = msgspec.json.Decoder(Measures)
_SUMMED: Final = ("requests", "dropped", "errors", "hangs", "nulls", "incomparable", "compared", "agreed")
_BINNED: Final = ("difference", "confidence", "margin", "serving_confidence", "serving_margin")


class Told(NamedTuple):
    """One device's window."""

    device: str
    opened_at: int
    closed_at: int
    shadow: ShadowCounts


def shown(connection: Connection, pipeline: str, version: str, now: int) -> dict[str, Any]:
    """`GET /releases/<pipeline>/<version>/shadow`. Raises Missing."""
    ref, _ = storage.release(connection, pipeline, version, field="version")
    since = now - LOOK_BACK_HOURS * HOUR_US
    told = list(_told(connection, [windows.c.received_at > since, *_of(pipeline, ref.digest)]))
    return {
        "pipeline": pipeline,
        "version": ref.version,
        "digest": ref.digest,
        "hours_asked": LOOK_BACK_HOURS,
        **_looked_at(told),
    }


def of_device(connection: Connection, device: str, pipeline: str, digest: str, now: int) -> dict[str, Any]:
    """What one device said of it in the last day."""
    since = now - DEVICE_HOURS * HOUR_US
    mine = [windows.c.device == device, windows.c.received_at > since, *_of(pipeline, digest)]
    return {"hours_asked": DEVICE_HOURS, **_looked_at(list(_told(connection, mine)))}


def _looked_at(told: Sequence[Told]) -> dict[str, Any]:
    """Summed; `complete`: nothing older was left out."""
    return {"windows": len(told), "complete": len(told) < WINDOWS_MAX, **summed(told)}


def summed(told: Sequence[Told]) -> dict[str, Any]:
    """All of it as one. `hours` is the longest that any device told of, `agreement` a share of rows, None without any."""
    parts = [one.shadow for one in told]
    counts = {name: sum(getattr(part, name) for part in parts) for name in _SUMMED}
    counts["agreed"] = sum(min(part.agreed, part.compared) for part in parts)
    bins = {name: _added(getattr(part, name) for part in parts) for name in _BINNED}
    hours: dict[str, int] = {}
    for one in told:
        hours[one.device] = hours.get(one.device, 0) + one.closed_at - one.opened_at
    return {
        "devices": len(hours),
        "hours": round(max(hours.values(), default=0) / HOUR_US, 2),
        **counts,
        "agreement": counts["agreed"] / counts["compared"] if counts["compared"] else None,
        "difference": bins["difference"],
        "latency_ms": _quantiles(part.latency for part in parts),
        "serving_latency_ms": _quantiles(part.serving_latency for part in parts),
        "drift": {name: _drift(bins[name], bins[f"serving_{name}"]) for name in ("confidence", "margin")},
    }


def _of(pipeline: str, digest: str) -> list[ColumnElement[bool]]:
    return [windows.c.pipeline == pipeline, windows.c.release_digest == digest, windows.c.measures != ""]


def _told(connection: Connection, where: Iterable[ColumnElement[bool]]) -> Iterable[Told]:
    rows = connection.execute(
        select(windows.c.device, windows.c.opened_at, windows.c.closed_at, windows.c.measures)
        .where(*where)
        .order_by(windows.c.received_at.desc())
        .limit(WINDOWS_MAX)
    )
    for row in rows:
        found = _measures.decode(row.measures).shadow
        if found is not None:
            yield Told(row.device, row.opened_at, row.closed_at, found)


def _added(bins: Iterable[tuple[int, ...]]) -> list[int]:
    found = [one for one in bins if one]
    length = max(map(len, found), default=0)
    return [sum(one[index] for one in found if index < len(one)) for index in range(length)]


def _quantiles(histograms: Iterable[Histogram]) -> dict[str, float | None]:
    whole = merged(histograms)
    return {name: _rounded(whole.quantile_ms(share)) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _drift(shadow: list[int], serving: list[int]) -> float | None:
    """The stability index; None where too few rows were measured to say anything."""
    if len(shadow) != len(serving) or min(sum(shadow), sum(serving)) < ROWS_MIN:
        return None
    return round(stability_index(shadow, serving), 4)
