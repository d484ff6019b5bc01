"""The page without a browser: what is drawn, what is escaped, what is asked of other hosts (nothing)."""

from __future__ import annotations

import re

import pytest

from holdfast_server.web import fleet, moments, releases
from support.shown_fleet import ShownFleet

PATHS = (
    "/",
    "/devices",
    "/devices/eu-west-000",
    "/releases",
    "/decisions",
    "/fragments/fleet",
    "/fragments/rollouts",
    "/fragments/taken-back",
    "/fragments/decisions",
    "/fragments/device/eu-west-000",
)


@pytest.mark.parametrize("path", PATHS)
def test_every_page_carries_a_policy_that_it_keeps(path: str) -> None:
    """Only this host; no inline script, no inline style, no handler in an attribute."""
    answer = ShownFleet(devices_a_region=3).application().test_client().get(path)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = answer.get_data(as_text=True)
    assert not re.search(r"<style|<script(?! src=)|\sstyle=|\son[a-z]+=|(src|href)=\"(https?:)?//", text)


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_whole_without_javascript(path: str) -> None:
    text = ShownFleet(devices_a_region=3).application().test_client().get(path).get_data(as_text=True)
    assert any(word in text for word in ("1.1.0", "halted", "wrong totals"))


def test_an_unknown_section_is_not_found() -> None:
    answer = ShownFleet(devices_a_region=1).application().test_client().get("/fragments/secrets")
    assert answer.status_code == 404


def test_a_version_keeps_its_colour_when_a_newer_one_is_published() -> None:
    shown = ShownFleet(devices_a_region=1)
    before = releases.colours(shown.releases())
    shown.versions.append("1.10.0")
    after = releases.colours(shown.releases())
    assert before.items() <= after.items()
    assert len(set(after.values())) == 4


def test_a_region_draws_a_limited_number_of_dots_and_says_how_many_are_left_out() -> None:
    shown = ShownFleet(devices_a_region=fleet.DOTS_A_REGION_MAX + 50)
    drawn = fleet.draw(shown.fleet(), shown.devices("*", None, 10_000), releases.colours(shown.releases()))
    for region in drawn[0].regions:
        assert len(region.dots) == fleet.DOTS_A_REGION_MAX
        assert region.undrawn == 50
        assert sum(part.count for part in region.bar) == fleet.DOTS_A_REGION_MAX + 50


def test_the_parts_of_a_bar_lie_side_by_side() -> None:
    shown = ShownFleet(devices_a_region=90)
    (pipeline,) = fleet.draw(shown.fleet(), shown.devices("*", None, 10_000), releases.colours(shown.releases()))
    left = 0.0
    for part in pipeline.bar:
        assert part.left == pytest.approx(left, abs=0.01)
        left += part.width
    assert left == pytest.approx(100, abs=0.01)


def test_what_a_dot_shows_by_colour_or_shape_it_also_says() -> None:
    shown = ShownFleet(devices_a_region=20)
    (pipeline,) = fleet.draw(shown.fleet(), shown.devices("*", None, 10_000), releases.colours(shown.releases()))
    for dot in pipeline.regions[0].dots:
        said = dot.words
        for mark in dot.marks.split()[1:]:
            expected = {"busy": "fetching", "offline": "not seen lately", "condemned": "condemned here"}.get(mark, mark)
            assert expected in said


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0004, "<1 %"), (0.014, "1 %"), (0.5, "50 %"), (0.9996, ">99 %"), (1, "100 %"), (None, "–")],
)
def test_a_chance_is_never_rounded_to_a_certainty(share: float | None, text: str) -> None:
    assert moments.percent(share) == text
