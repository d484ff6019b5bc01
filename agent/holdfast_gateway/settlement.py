"""What a request's fate means for the slots that tried it. Here is every rule of counting, and nothing is counted elsewhere.

- Answered well: good for that slot; every slot that failed it before is charged, and `failed_over`.
- Failed, and no other slot could try: charged to the slot that failed it.
- Failed in two slots, or called faulty by one: an input fault, against neither, and the workers lost at it are pardoned.
  It is counted at the slot that was asked first.
- Asked, but its worker was lost at an earlier request: nothing is known of it; one attempt, and no error.

Counting waits until the fate is known, at the longest one more request deadline, so that nothing is ever taken back.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from holdfast_gateway.inference import Inference, error_body
from holdfast_worker.protocol import NO_HEADER

if TYPE_CHECKING:
    from holdfast_gateway.slot import Slot


def answered_well(slot: Slot, inference: Inference, latency_ms: float, compute_us: int, now: float) -> None:
    """`slot` answered it; whoever failed it before did fail it."""
    _charge(inference, now, answered_by_another=True)
    counts = slot.counts
    counts.good(latency_ms, now)
    counts.life.answered_well(now, since=inference.since, latency_ms=latency_ms, compute_us=compute_us)


def faulty(slot: Slot, inference: Inference, now: float) -> None:
    """`slot` says that the request itself is wrong."""
    first = inference.failures[0].slot if inference.failures else slot
    first.counts.input_fault(now)


def asked_again(inference: Inference, other: Slot, now: float) -> None:
    """`other` is asked what was behind a loss. Where it is the same slot, started again, that is still one attempt."""
    behind, inference.behind = inference.behind, None
    if behind is not None and behind.target != other.target:
        behind.counts.behind(now, answered_by_another=True)


def unanswered(inference: Inference, now: float) -> bool:
    """Nobody is left to try it; whether a slot is to blame for that."""
    if inference.behind is not None and not inference.failures:
        inference.behind.counts.behind(now, answered_by_another=False)
    if len({failure.slot.target.key for failure in inference.failures}) > 1:
        inference.failures[0].slot.counts.input_fault(now)
        return False
    _charge(inference, now, answered_by_another=False)
    return bool(inference.failures)


def last_words(inference: Inference) -> tuple[int, int, bytes]:
    """What to answer when nobody could do better: the outputs that were null, or why every slot failed."""
    if inference.null_answer is not None:
        return HTTPStatus.OK, *inference.null_answer
    said = "; ".join(f"{failure.slot}: {failure.said}" for failure in inference.failures)
    if len(inference.failures) > 1 or (inference.failures and inference.failures[0].loss is None):
        return HTTPStatus.INTERNAL_SERVER_ERROR, NO_HEADER, error_body(said)
    said = said or "the worker was lost at an earlier request"
    return HTTPStatus.SERVICE_UNAVAILABLE, NO_HEADER, error_body(f"{said}; no other release can answer now")


def _charge(inference: Inference, now: float, *, answered_by_another: bool) -> None:
    for failure in inference.failures:
        failure.slot.counts.bad(failure.bad, now, answered_by_another=answered_by_another)
        if failure.loss is not None:
            failure.slot.charge(failure.loss)
