"""What really happened, read after the run from where it was written first: each device's own record, and the server's tables.

Times are on this machine's one monotonic clock. Nothing here trusts what the page or the narration said.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlite_utils import Database

from demonstration.digits import PIPELINE
from demonstration.fleet import Device, Provisioned
from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.durable import DoubledFile

_US_PER_MS: Final = 1_000
_US_PER_S: Final = 1_000_000


def slots(provisioned: Provisioned, device: Device) -> PipelineRecord:
    """The device's own record of the pipeline, as it lies on its disk."""
    found = DoubledFile(StateFolder(provisioned.state(device.id)).record).read()
    if found is None:
        return PipelineRecord()
    return record.decode(found[1]).pipeline(PIPELINE)


def activated(provisioned: Provisioned, digest: str) -> set[str]:
    """Devices whose own record says that they ever activated the release."""
    return {
        device.id
        for device in provisioned.devices
        if any(one.target.release.digest == digest for one in slots(provisioned, device).activations)
    }


def serving(provisioned: Provisioned) -> dict[str, str]:
    """By device, the version that its own record has it serve."""
    found = {device.id: slots(provisioned, device).serving for device in provisioned.devices}
    return {device: target.release.version for device, target in found.items() if target is not None}


def bad_release(provisioned: Provisioned, database: Path, rollout: Mapping[str, Any]) -> dict[str, Any]:
    """What 1.2.0 did, and how soon it was over."""
    digest = rollout["release"]["digest"]
    cohort, did = set(rollout["reached"]), activated(provisioned, digest)
    fallbacks = _fallbacks(database, digest)
    real = {device.id for device in provisioned.devices if device.kind == "real"}
    durations = [(at - began) / _US_PER_MS for device, began, at in fallbacks if device in real]
    first_breach = min((began for _, began, _ in fallbacks), default=None)
    halted = rollout["halted_monotonic_us"]
    back = [one["back_at_monotonic_us"] for one in rollout["returned"]]
    return {
        "version": rollout["release"]["version"],
        "local_fallback_ms": round(statistics.median(durations), 1) if durations else None,
        "local_fallback_ms_max": round(max(durations), 1) if durations else None,
        "breach_to_halt_s": round((halted - first_breach) / _US_PER_S, 2) if first_breach is not None else None,
        "halt_to_fleet_back_s": round(max(0, max(back) - halted) / _US_PER_S, 2) if back else None,
        "activated": len(did),
        "cohort": len(cohort),
        "outside_cohort": len(did - cohort),
        "evidence": {"real": 0, "light": 0} | dict(rollout["evidence"]),
    }


def segment_rollback(
    provisioned: Provisioned, rollback: Mapping[str, Any], segment: Collection[str], digest: str
) -> dict[str, Any]:
    """How soon each device of the segment was back, and how many devices outside it no longer serve the release."""
    took = sorted(
        (one["back_at_monotonic_us"] - rollback["accepted_monotonic_us"]) / _US_PER_S for one in rollback["devices"]
    )
    outside = [device for device in provisioned.devices if device.id not in segment]
    moved = [
        device.id
        for device in outside
        if (target := slots(provisioned, device).serving) is None or target.release.digest != digest
    ]
    return {
        "devices": len(took),
        "p50_s": round(_quantile(took, 0.50), 2),
        "p95_s": round(_quantile(took, 0.95), 2),
        "max_s": round(took[-1], 2),
        "outside_segment": len(moved),
    }


def failed_over(database: Path, devices: Iterable[Device]) -> int:
    """Requests that the other slot of a real device answered, as the devices counted and signed them."""
    names = [device.id for device in devices]
    marks = ", ".join("?" * len(names))
    opened = Database(database)
    try:
        found = list(opened.query(f"SELECT SUM(failed_over) AS n FROM windows WHERE device IN ({marks})", names))  # noqa: S608 - only question marks go in
    finally:
        opened.conn.close()
    return int(found[0]["n"] or 0)


def waves_released(rollout: Mapping[str, Any]) -> int:
    return sum(wave["state"] != "waiting" for wave in rollout["waves"])


def _fallbacks(database: Path, digest: str) -> list[tuple[str, int, int]]:
    """(device, first breaching answer, first moment that the good slot served), of all devices, in µs."""
    opened = Database(database)
    try:
        rows = opened["device_events"].rows_where("kind = 'fell_back' AND release_digest = ?", [digest])
        return [
            (row["device"], row["began_monotonic_us"], row["at_monotonic_us"])
            for row in rows
            if row["began_monotonic_us"] is not None
        ]
    finally:
        opened.conn.close()


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest-rank quantile of ascending values."""
    rank = max(1, -(-int(fraction * 100) * len(ordered) // 100))
    return ordered[min(rank, len(ordered)) - 1]
