"""A rule's spread: the devices of a wave do not all begin at once.

Each begins at its own moment within `spread_s` of when it first saw the rule: always the same part of it for one release and one
device, whatever is asked again. The record remembers when that was, over restarts; within one run of the agent the clock that
does not jump counts, so that a wall clock that is set makes nobody wait for ever. What is urgent never asks here.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from holdfast_agent.core.device import SECOND_US, Device
from holdfast_agent.core.events import Moment
from holdfast_agent.core.record import FirstWanted
from holdfast_shared import cohort
from holdfast_shared.assign import Decision, Target


def begun(device: Device, name: str, decision: Decision, now: Moment) -> Device:
    """With the moment noted from which the device may go to what it should serve. A rule of later is not seen before."""
    target, spread_s = decision.serve, decision.spread_s
    pipeline, live = device.record.pipeline(name), device.live_of(name)
    early = decision.not_before is not None and decision.not_before > now.at
    if target is None or spread_s is None or early or target == pipeline.current or live.begins_for == _key(decision):
        return device
    known = pipeline.first_wanted
    if known is None or known.target != target.key:
        known = FirstWanted(target=target.key, at=max(now.at, 0))
    offset_us = offset_s(target, device.own.membership.device, spread_s) * SECOND_US
    left_us = min(max(known.at + offset_us - now.at, 0), offset_us)
    device = device.with_pipeline(name, msgspec.structs.replace(pipeline, first_wanted=known))
    return device.with_live(name, replace(live, begins_us=now.monotonic_us + left_us, begins_for=_key(decision)))


def in_the_way(device: Device, name: str, decision: Decision, now: Moment) -> str:
    """That its moment has not come yet, in words; or nothing."""
    live = device.live_of(name)
    if decision.spread_s is None or live.begins_us is None or live.begins_for != _key(decision):
        return ""
    waits = live.begins_us > now.monotonic_us
    return f"its moment in the {decision.spread_s} s over which the rule spreads its devices" if waits else ""


def offset_s(target: Target, device: str, spread_s: int) -> int:
    """How long after it first saw the rule this device begins."""
    return spread_s * cohort.bucket(target.release.digest, device) // cohort.BUCKETS


def _key(decision: Decision) -> str:
    return f"{decision.serve.key} within {decision.spread_s}" if decision.serve is not None else ""
