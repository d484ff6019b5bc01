"""What one slot did in this gateway's life: the numbers that monitoring asks for and no judgement rests on.

Whole numbers that only grow. They cost an addition each, so nothing here is a histogram: that is in `counts.py`.
"""

from __future__ import annotations

from typing import Final

_US: Final = 1_000_000


class Lifetime:
    """`request_us`, `worker_us` and `compute_us` are sums over the requests that were answered well: from the whole request
    to its answer, of that the worker's turn, and of that the model's time alone."""

    __slots__ = (
        "abandoned",
        "answered",
        "answered_at_s",
        "compute_us",
        "losses",
        "rejected",
        "request_us",
        "starts",
        "worker_us",
    )

    def __init__(self) -> None:
        self.answered = self.request_us = self.worker_us = self.compute_us = 0
        self.answered_at_s = 0.0  # the last answer, of CLOCK_MONOTONIC; 0 before the first
        self.rejected = 0  # the queue was full
        self.abandoned = 0  # nobody waited any more when its turn came
        self.starts = self.losses = 0  # of workers

    def answered_well(self, now: float, *, since: float, latency_ms: float, compute_us: int) -> None:
        """One more; `since` is when the request had come."""
        self.answered += 1
        self.answered_at_s = now
        self.request_us += int((now - since) * _US)
        self.worker_us += int(latency_ms * 1000)
        self.compute_us += compute_us

    @property
    def queue_us(self) -> int:
        """What they waited for a worker's turn."""
        return max(0, self.request_us - self.worker_us)

    @property
    def carry_us(self) -> int:
        """What the worker's turn took beside the model: sockets, parsing and encoding."""
        return max(0, self.worker_us - self.compute_us)
