"""Enrolment as the scheduler sees it: every change is noticed, whatever the server's clock did meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from holdfast_server import membership
from holdfast_server.context import Context
from holdfast_server.core.rollout import Moment
from holdfast_server.rollouts.fleet import Fleet
from support.running_server import database_url, server_context
from support.running_server import membership as signed

HOUR_US = 3600 * 1_000_000


def at(context: Context, moment_us: int) -> Context:
    return replace(context, now=lambda: Moment(at=moment_us, monotonic_us=1))


def test_a_device_that_moves_after_the_clock_was_set_back_is_seen_to_have_moved(tmp_path: Path) -> None:
    """Waves are judged, and rollbacks aimed, by where devices are now."""
    fleet = Fleet()
    with database_url("sqlite", tmp_path, None) as url, server_context(url, tmp_path) as context:
        for moment_us, counter, region in (
            (2 * HOUR_US, 1, "eu-west"),
            (HOUR_US, 2, "us-east"),
            (HOUR_US, 3, "ap-south"),
        ):
            membership.enrol(at(context, moment_us), signed("camera-1", region, counter=counter))
            with context.database.read() as connection:
                fleet.refresh(connection)
            assert fleet.devices["camera-1"].labels["region"] == region
