"""Every topic that is made is parsed back, and nothing else is ours."""

from __future__ import annotations

import pytest

from holdfast_shared import topics
from holdfast_shared.topics import Parsed


def test_what_is_made_is_parsed() -> None:
    assert topics.parse("f", topics.region_assignment("f", "eu", "p")) == Parsed("region", "eu", "assignment", "p")
    assert topics.parse("f", topics.device_assignment("f", "d", "p")) == Parsed("device", "d", "assignment", "p")
    assert topics.parse("f", topics.health("f", "d")) == Parsed("device", "d", "health", "")
    assert topics.parse("f", topics.event("f", "d")) == Parsed("device", "d", "event", "")
    assert topics.parse("f", topics.presence("f", "d")) == Parsed("device", "d", "presence", "")
    assert topics.parse("f", topics.command("f", "rollback")) == Parsed("fleet", "rollback", "command", "")


@pytest.mark.parametrize(
    "topic",
    ["", "holdfast/other/device/d/health", "holdfast/f/device/d", "holdfast/f/region/eu/health", "x/f/device/d/health"],
)
def test_others_are_not_ours(topic: str) -> None:
    assert topics.parse("f", topic) is None
