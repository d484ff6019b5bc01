"""The exact one-sided binomial test, in the standard library alone: the device and the server judge by the same numbers."""

from __future__ import annotations

import math


def upper_tail(successes: int, trials: int, chance: float) -> float:
    """P(X ≥ `successes`) for X ~ Binomial(`trials`, `chance`): how surprising at least so many are.

    Summed in logarithms from the larger end of the tail, so it neither overflows nor loses a small tail.
    """
    if not 0 <= successes <= trials or not 0.0 <= chance <= 1.0:
        raise ValueError(f"expected 0 ≤ successes ≤ trials and 0 ≤ chance ≤ 1, found {successes}, {trials}, {chance}")
    if successes == 0 or chance == 1.0:
        return 1.0
    if chance == 0.0:
        return 0.0
    term = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(chance)
        + (trials - successes) * math.log1p(-chance)
    )
    if successes <= trials * chance:  # the near tail is long: sum the short, far one instead
        return 1.0 - _downwards(
            successes - 1, trials, chance, term * successes / (trials - successes + 1) * (1 - chance) / chance
        )
    total = term
    for count in range(successes + 1, trials + 1):
        term *= (trials - count + 1) / count * chance / (1 - chance)
        total += term
        if term < total * 1e-17:
            break
    return min(total, 1.0)


def _downwards(successes: int, trials: int, chance: float, term: float) -> float:
    """P(X ≤ `successes`), given P(X = `successes`) = `term`."""
    total = term
    for count in range(successes, 0, -1):
        term *= count / (trials - count + 1) * (1 - chance) / chance
        total += term
        if term < total * 1e-17:
            break
    return min(total, 1.0)
