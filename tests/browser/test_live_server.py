"""The page of a real server over real devices: what happens in the fleet is seen in an open page, without reload."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect

from demonstration.digits import PIPELINE
from support import digits_models
from support.small_fleet import SmallFleet, device, mixed_images, small_fleet

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(180)]

GOOD, BAD, NEXT = "1.0.0", "1.1.0", "1.2.0"
CANARY, OTHER = device("camera-1"), device("camera-2", canary=False)
WAVES: Final = ("100% ring=canary", "100%")
# Devices report once a second here; the rest is for a machine that others use too.
SEEN_MS: Final = 60_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    with small_fleet([CANARY, OTHER]) as started:
        started.publish(NEXT, digits_models.trained())
        started.publish(GOOD, digits_models.trained())
        started.publish(BAD, digits_models.nan_on_some())
        yield started


def opened(page: Page, fleet: SmallFleet, path: str) -> Page:
    page.goto(fleet.server.address + path)
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("window.opened = true")
    return page


def never_reloaded(page: Page) -> bool:
    return page.evaluate("window.opened") is True


def test_a_real_rollout_and_a_real_fallback_are_seen_without_reload(
    chromium: Browser, page: Page, complaints: list[str], fleet: SmallFleet
) -> None:
    """Each wave as it changes; then a device that leaves a bad release by itself, why, and that the rollout halted for it."""
    opened(page, fleet, "/")
    rollout = fleet.start_rollout(GOOD, *WAVES)
    card = page.locator(f"[data-rollout='{rollout}']")
    first, second = (card.locator(f"[data-wave='{number}'] .chip") for number in (1, 2))
    expect(first).to_have_text("released", timeout=SEEN_MS)
    expect(second).to_have_text("waiting")
    with fleet.application():
        expect(first).to_have_text("passed", timeout=SEEN_MS)
        expect(second).to_have_text("passed", timeout=SEEN_MS)
        expect(card.locator(".card-head .chip")).to_have_text("finished")
        expect(page.locator(".legend")).to_contain_text(f"{GOOD} 2", timeout=SEEN_MS)

    second_page = chromium.new_page()
    try:
        canary = opened(second_page, fleet, f"/devices/{CANARY.id}")
        expect(canary.locator(".slot.serves .slot-version")).to_have_text(GOOD)
        with fleet.application(images=mixed_images()) as applications:
            bad = fleet.start_rollout(BAD, *WAVES)
            expect(canary.locator("main")).to_contain_text("guardrail-null-rate", timeout=SEEN_MS)
            expect(canary.locator(".slot.serves .slot-version")).to_have_text(GOOD, timeout=SEEN_MS)
            halted = page.locator(f"[data-rollout='{bad}']")
            expect(halted.locator(".card-head .chip")).to_have_text("halted", timeout=SEEN_MS)
            expect(halted.locator(".cause")).to_contain_text("guardrail-null-rate")
            expect(halted.locator("[data-wave='1'] .chip")).to_have_text("failed")
            expect(page.locator("#h-back + .swapped")).to_contain_text(BAD)
            expect(page.locator(f".dot.condemned[title^='{CANARY.id}']")).to_have_count(1)
            assert not [failure for one in applications for failure in one.failures]
        assert never_reloaded(canary)
    finally:
        second_page.close()
    assert never_reloaded(page)
    assert not complaints


def test_a_real_share_of_the_requests_is_seen_where_it_is_given(
    page: Page, complaints: list[str], fleet: SmallFleet
) -> None:
    """What the first test left serves; the next release gets half of the requests of the canary, and then all."""
    words = ("--wave", "100% ring=canary, requests=50%", "--wave", "100%", "--request-segment", "tier=beta")
    limits = ("--soak", "3600", "--requests-min", "40")
    planned = fleet.operator.run("anna", "rollout", "plan", PIPELINE, NEXT, *words, *limits, "--start")
    rollout = str(planned["id"])
    opened(page, fleet, "/")
    card = page.locator(f"[data-rollout='{rollout}']")
    share = "50 % of requests with tier=beta"
    expect(card.locator("[data-wave='1'] .wave-what")).to_have_text(f"100 % of ring=canary, {share}")
    dot = page.locator(f".dot[title^='{CANARY.id}']")
    expect(dot).to_have_attribute("title", re.compile(f"{NEXT}.*trial of {share}"), timeout=SEEN_MS)

    opened(page, fleet, f"/devices/{CANARY.id}")
    expect(page.locator(".slot.serves", has_text=NEXT)).to_contain_text(f"answers {share}")
    expect(page.locator(".slot.serves", has_text=GOOD)).to_contain_text("answers the others")
    fleet.operator.run("anna", "rollout", "abort", rollout)
    expect(page.locator(".slot.serves")).to_have_count(1, timeout=SEEN_MS)
    expect(page.locator(".slot.serves .slot-version")).to_have_text(GOOD)
    expect(page.locator("main")).not_to_contain_text("answers")
    assert never_reloaded(page)
    assert not complaints
