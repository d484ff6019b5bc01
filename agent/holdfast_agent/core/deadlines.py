"""By when each state of a pipeline's machine ends by itself. A deadline counts only while the state could end otherwise: while
what is staged may go forward but for something that nobody waits for, and while a gateway hears what it is asked.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast_agent.core.backoff import SECOND_US
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import State
from holdfast_gateway.losses import LATE_MAX, SHADOW_PATIENCE
from holdfast_shared.wire.release import Limits, Release

# The fetch has deadlines of its own; this one holds even for a fetch that has lost its mind.
FETCH_US: Final = 6 * 3600 * SECOND_US
# What keeps a staged release from being tried, and is no window, is a person's to clear up: by then somebody should know.
STAGED_US: Final = 24 * 3600 * SECOND_US
# The gateway keeps the load deadlines; past them and this it has forgotten to tell us.
GRACE_US: Final = 30 * SECOND_US
# The gateway starts a candidate's worker so often before it gives it up, each time up to its load deadline.
LOADS: Final = LATE_MAX
# A month of traffic has every weekday and a month's end in it. What is not decided by then, nobody is deciding. Counted in
# hours that begin, each saved: a device that starts again and again does not shadow for ever.
SHADOW_HOURS_MAX: Final = 30 * 24
HOUR_US: Final = 3600 * SECOND_US
# A gateway that hears us confirms a switch to a loaded slot in milliseconds, to one it must load within a load deadline.
FALLING_BACK_US: Final = 120 * SECOND_US


class Deadline(NamedTuple):
    """As people read it: how long, what does not count, and the state that follows."""

    after: str
    counted: str
    to: State


# Every state that waits for somebody else has one. `idle` waits for nothing.
DEADLINES: Final[dict[State, Deadline]] = {
    State.FETCHING: Deadline("6 h", "always", State.IDLE),
    State.STAGED: Deadline("24 h", "outside of not_before and windows", State.IDLE),
    State.SELF_TESTING: Deadline(
        "4 of the release's load deadlines + 30 s", "while the gateway is connected", State.IDLE
    ),
    State.TRIAL: Deadline(
        "until confirmed 4 load deadlines + 30 s, from there the release's soak; of a share of the requests, until the decision"
        " changes",
        "while the gateway is connected; the soak always",
        State.FALLING_BACK,
    ),
    State.SHADOWING: Deadline("30 days", "by hours that begin, on a clock that does not jump", State.IDLE),
    State.FALLING_BACK: Deadline("2 min", "while the gateway is connected", State.IDLE),
}


def fetched_by(now: Moment) -> int:
    return now.monotonic_us + FETCH_US


def self_tested_by(release: Release | None, now: Moment) -> int:
    """When the gateway must have said how the self-test went."""
    return now.monotonic_us + LOADS * _load_us(release) + GRACE_US


def shadow_tested_by(release: Release | None, now: Moment) -> int:
    """When the gateway must have said how the self-test of what is only to shadow went."""
    return now.monotonic_us + SHADOW_PATIENCE * _load_us(release) + GRACE_US


def trial_confirmed_by(release: Release | None, now: Moment) -> int:
    """When the gateway must have said that the candidate serves."""
    return now.monotonic_us + LOADS * _load_us(release) + GRACE_US


def fallen_back_by(now: Moment) -> int:
    return now.monotonic_us + FALLING_BACK_US


def _load_us(release: Release | None) -> int:
    limits = release.limits if release is not None else Limits()
    return limits.load_deadline_s * SECOND_US
