"""What the page says of environments that were taken back, beside the release that stays."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_server.web import taken_back

OLD, NEW = "sha256:" + "0d" * 32, "sha256:" + "ff" * 32


def rollback(**more: Any) -> Any:
    return {
        "id": "b-1", "pipeline": "digits", "version": "1.3.0", "to": "1.3.0", "segment": "*", "reason": "leaks",
        "state": "accepted", "requested_by": "ann", "accepted_at": 2, "devices_back": 1, "devices_before": 3, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, ""),
        ({"environment": None, "to_environment": "system", "every_version": False, "also": []}, ""),
        (
            {"environment": NEW, "to_environment": OLD, "every_version": False, "also": []},
            f"environment {NEW[:19]} → {OLD[:19]}",
        ),
        (
            {"environment": NEW, "to_environment": "system", "every_version": True, "also": []},
            f"environment {NEW[:19]} → system, left by every version",
        ),
        (
            {
                "environment": NEW, "to_environment": OLD, "every_version": True,
                "also": [{"version": "1.1.0", "environment": OLD}, {"version": "1.2.0", "environment": OLD}],
            },
            f"environment {NEW[:19]} → {OLD[:19]}, left by every version: also by 1.1.0, 1.2.0",
        ),
    ],
)  # fmt: skip
def test_an_environment_that_was_left_is_said(more: Any, says: str) -> None:
    (entry,) = taken_back.draw({"rollbacks": [rollback(**more)]}, {"rollouts": []})
    assert entry.environment == says
