"""What one slot did in this gateway's life, in the form of Triton's statistics extension.

Source: github.com/triton-inference-server/server, docs/protocol/extension_statistics.md. Nothing is batched or cached here, so
an execution is an attempt at one request, and the fields about batches, responses and the cache are there and empty.
"""

from __future__ import annotations

import time
from typing import Any

from holdfast_gateway.slot import Slot


def of(slot: Slot) -> dict[str, Any]:
    """One `model_stat`. `success` is what it answered well; `fail` what it did not, without how long that took."""
    sums, life = slot.counts.totals, slot.counts.life
    answered = life.answered
    return {
        "name": slot.name,
        "version": slot.version,
        "last_inference": _wall_ms(life.answered_at_s),
        "inference_count": answered,
        "execution_count": sums.requests,
        "inference_stats": {
            "success": _took(answered, life.request_us),
            "fail": _took(sums.errors + sums.nulls + sums.input_faults, 0),
            "queue": _took(answered, life.queue_us),
            "compute_input": _took(answered, life.carry_us),
            "compute_infer": _took(answered, life.compute_us),
            "compute_output": _took(answered, 0),
            "cache_hit": _took(0, 0),
            "cache_miss": _took(0, 0),
        },
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": slot.memory_bytes()}],
    }


def _took(count: int, us: int) -> dict[str, int]:
    return {"count": count, "ns": us * 1000}


def _wall_ms(monotonic_s: float) -> int:
    """Since the epoch; 0 for never."""
    return int((time.time() - (time.monotonic() - monotonic_s)) * 1000) if monotonic_s else 0
