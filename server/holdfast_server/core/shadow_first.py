"""The gate before production: where the server's policy says so, a release serves only after it has shadowed what serves.

The evidence is a *finished* rollout of the same release, in the same environment, that only shadowed: each of its waves passed. A
release that finished a rollout in which it served there needs none, nor does one that there was nothing to shadow for.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_server.core.plan import Plan
from holdfast_server.core.rollout import Rollout, State
from holdfast_server.core.segments import Match, conjunction
from holdfast_shared import selector
from holdfast_shared.errors import Conflict


def evidence(plan: Plan, policy: Match | None, before: Iterable[Rollout]) -> tuple[str, ...]:
    """The finished rollouts that say that it may serve; none where none is asked for. Raises Conflict without any."""
    if policy is None or plan.shadow is not None or plan.previous is None or conjunction(plan.segment, policy) is None:
        return ()
    same = [one for one in before if one.plan.release == plan.release and one.plan.rollout != plan.rollout]
    # To have served elsewhere says nothing: staging comes before the shadow.
    told = (one for one in same if one.plan.shadow is not None or conjunction(one.plan.segment, policy) is not None)
    finished = tuple(one.id for one in told if one.state is State.FINISHED)
    if finished:
        return finished
    ended = [f"{one.id} is {one.state}" for one in same if one.plan.shadow is not None]
    raise Conflict(
        f"{plan.pipeline} {plan.release.version} has not shadowed what serves, and this server asks for that in"
        f" {selector.written(policy)}: {', '.join(ended) or 'no rollout had it shadow'}",
        field="version",
        next_step=f"let it shadow first: holdfast rollout plan {plan.pipeline} {plan.release.version} --shadow --start",
    )
