"""The page in a real browser: live without reload, safe with hostile names, usable on a phone and by keyboard."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from support.shown_fleet import SHARE, Shown, device, ref, running_rollout, sharing_rollout, wave

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\"'&amp;"
PATHS = ("/", "/devices", "/devices/eu-west-000", "/releases", "/decisions")


def open_live(page: Page, shown: Shown, path: str = "/") -> None:
    page.goto(shown.address + path)
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("window.opened = true")


def test_a_wave_change_appears_without_reload(page: Page, shown: Shown, complaints: list[str]) -> None:
    rollout = running_rollout()
    shown.fleet.rollout_list.insert(0, rollout)
    open_live(page, shown)
    third = page.locator("[data-rollout=ro-4] [data-wave='3'] .chip")
    expect(third).to_have_text("released")

    rollout["waves"][2] = wave(3, 500, 17, "passed")
    rollout["waves"][3] = wave(4, 2_000, 61, "released")
    shown.fleet.changed("rollouts")

    expect(third).to_have_text("passed")
    expect(page.locator("[data-rollout=ro-4] [data-wave='4'] .chip")).to_have_text("released")
    assert page.evaluate("window.opened") is True
    assert not complaints


def test_a_fallback_and_a_halt_appear_without_reload(page: Page, shown: Shown) -> None:
    open_live(page, shown)
    shown.fleet.device_list[0]["pipelines"][0]["state"] = "falling_back"
    shown.fleet.rollback_list.insert(
        0, shown.fleet.rollback_list[0] | {"id": "rb-2", "reason": "too slow at the tills"}
    )
    shown.fleet.changed("fleet", "rollbacks")
    expect(page.locator(".region", has_text="ap-south")).to_contain_text("1 falling back")
    expect(page.locator("[data-entry=rb-2]")).to_contain_text("too slow at the tills")
    assert page.evaluate("window.opened") is True


def test_what_a_person_opened_stays_open_when_its_section_changes(page: Page, shown: Shown) -> None:
    open_live(page, shown)
    page.get_by_text("Evidence").first.click()
    expect(page.locator("pre").first).to_be_visible()
    shown.fleet.decision_list.insert(
        0, {"number": 8, "what": "wave 2 released", "why": "", "evidence": None, "at": 1, "monotonic_us": 1}
    )
    shown.fleet.changed("decisions")
    expect(page.locator(".decisions")).to_contain_text("wave 2 released")
    expect(page.locator("pre").first).to_be_visible()


def test_the_page_recovers_when_the_server_comes_back(page: Page, shown: Shown) -> None:
    """What changed while nobody listened is fetched on reconnecting."""
    open_live(page, shown)
    shown.fleet.rollout_list[0]["cause"] = "seen after the stream broke"
    shown.fleet.close()
    expect(page.locator("[data-rollout=ro-3] .cause")).to_contain_text("seen after the stream broke")
    expect(page.locator("#live")).to_have_text("live")


def test_hostile_names_are_text(page: Page, shown: Shown, complaints: list[str]) -> None:
    fleet = shown.fleet
    fleet.device_list[0]["labels"]["note"] = HOSTILE
    fleet.device_list[0]["pipelines"][0]["waiting_for"] = HOSTILE
    fleet.device_list[0]["agent_version"] = HOSTILE
    fleet.device_list[0]["isolation"] = {"applied": {HOSTILE: HOSTILE}, "degraded": {HOSTILE: HOSTILE}}
    fleet.rollout_list[0] |= {"cause": HOSTILE, "notes": [HOSTILE]}
    fleet.rollout_list[0]["waves"][0]["gates"][0]["evidence"] = {HOSTILE: HOSTILE}
    fleet.rollback_list[0] |= {"reason": HOSTILE, "requested_by": HOSTILE}
    fleet.decision_list[0] |= {"why": HOSTILE, "evidence": {HOSTILE: HOSTILE}}
    for path in ("/", f"/devices/{fleet.device_list[0]['device']}", "/devices", "/decisions"):
        page.goto(shown.address + path)
        expect(page.locator("main")).to_contain_text("onerror")
        assert page.title() != "owned"
        assert page.locator("main img, main script").count() == 0
    assert not complaints


def test_a_hostile_segment_is_told_and_is_text(page: Page, shown: Shown) -> None:
    page.goto(shown.address + "/devices")
    page.get_by_label("Segment").fill('"><script>document.title="owned"</script>')
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert")).to_contain_text("write it like: region=eu-west")
    assert page.title() != "owned"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_usable_at_400_pixels(
    page: Page, shown: Shown, complaints: list[str], path: str, scheme: str
) -> None:
    """Nothing is cut off or pushes the page sideways, and nothing that can be pressed overlaps the edge."""
    shown.fleet.rollout_list.insert(0, running_rollout())
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(shown.address + path)
    expect(page.locator("h1").first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    outside = page.evaluate(
        """[...document.querySelectorAll("nav a, main button, main input, main summary, .card, .wave, .chip")]
            .filter((element) => !element.closest(".scroll") && element.getBoundingClientRect().right > 400.5)
            .map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert not outside
    assert not complaints


def test_text_has_contrast_enough_in_both_schemes(page: Page, shown: Shown) -> None:
    """WCAG AA: 4.5 to 1 for text, each against the ground behind it."""
    shown.fleet.rollout_list.insert(0, running_rollout())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.goto(shown.address + "/")
        weak = page.evaluate(CONTRAST)
        assert not weak, (scheme, weak)


def test_every_device_is_reached_by_keyboard_through_the_list(page: Page, shown: Shown) -> None:
    """The dots are skipped by Tab, so each region's name leads to a list of the same devices."""
    page.goto(shown.address)
    page.get_by_role("link", name="eu-west", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/devices?segment=region*")
    assert page.locator("tbody tr").count() == 100
    page.get_by_role("link", name="eu-west-000").click()
    expect(page.locator("h1")).to_have_text("eu-west-000")
    expect(page.locator(".slot.serves")).to_contain_text("1.1.0")
    expect(page.locator("main")).to_contain_text("null-output")


def test_a_device_page_is_live(page: Page, shown: Shown) -> None:
    open_live(page, shown, "/devices/eu-west-001")
    mine = next(one for one in shown.fleet.device_list if one["device"] == "eu-west-001")
    mine["pipelines"][0] |= {"serving": ref("1.2.0"), "candidate": ref("1.2.0"), "state": "trial"}
    shown.fleet.changed("fleet")
    expect(page.locator(".card-head .chip").first).to_have_text("trial")


def test_one_release_in_two_environments_is_two_slots(page: Page, shown: Shown) -> None:
    """Only the environment tells them apart, so it is shown, and one of them serves."""
    mine = next(one for one in shown.fleet.device_list if one["device"] == "eu-west-001")
    new, old = ({**ref("1.1.0"), "environment": f"sha256:{digit * 64}", "ready": True} for digit in "ab")
    mine["pipelines"][0] |= {"serving": new, "current": new, "previous": old}
    page.goto(f"{shown.address}/devices/eu-west-001")
    expect(page.locator(".slot.serves")).to_have_count(1)
    expect(page.locator(".slot.serves")).to_contain_text("in sha256:aaaaaaaaaaaa")
    expect(page.locator(".slot", has_text="previous")).to_contain_text("in sha256:bbbbbbbbbbbb")


def test_a_share_of_the_requests_is_told_wherever_it_matters(page: Page, shown: Shown, complaints: list[str]) -> None:
    """The rollout's card, its region, the device's dot, and its page: which slot answers which requests."""
    mine = next(one for one in shown.fleet.device_list if one["device"] == "eu-west-001")
    open_live(page, shown, "/devices/eu-west-001")
    expect(page.locator(".slot.serves")).to_have_count(1)
    expect(page.locator("main")).not_to_contain_text("answers")
    new = {"version": "1.3.0", "digest": "sha256:" + "ef" * 32, "ready": True}
    mine["pipelines"][0] |= {"serving": new, "candidate": new, "state": "trial", "requests": SHARE}
    shown.fleet.changed("fleet")
    expect(page.locator(".slot.serves", has_text="candidate")).to_contain_text("answers 5 % of requests with tier=beta")
    expect(page.locator(".slot.serves", has_text="current")).to_contain_text("answers the others")
    mine["pipelines"][0]["current"]["ready"] = False
    shown.fleet.changed("fleet")
    expect(page.locator(".slot.serves")).to_have_count(1)

    shown.fleet.rollout_list.insert(0, sharing_rollout())
    page.set_viewport_size({"width": 400, "height": 800})
    open_live(page, shown)
    first, second = (page.locator(f"[data-rollout=ro-4] [data-wave='{number}'] .wave-what") for number in (1, 2))
    expect(first).to_have_text("100 % of all regions, 5 % of requests with tier=beta")
    expect(second).to_have_text("100 % of all regions")
    expect(page.locator(".region", has_text="eu-west")).to_contain_text("1 with a share of the requests")
    dot = page.locator(".dot[title^='eu-west-001']")
    expect(dot).to_have_attribute("title", "eu-west-001, 1.3.0, trial of 5 % of requests with tier=beta")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not complaints


def test_an_empty_server_says_what_to_do_first(page: Page, shown: Shown) -> None:
    shown.fleet.device_list, shown.fleet.rollout_list, shown.fleet.rollback_list = [], [], []
    shown.fleet.versions = []
    page.goto(shown.address)
    expect(page.locator("main")).to_contain_text("holdfast device enrol")
    expect(page.locator("main")).to_contain_text("holdfast rollout plan")
    page.goto(shown.address + "/releases")
    expect(page.locator("main")).to_contain_text("holdfast publish")


def test_a_device_that_runs_nothing_is_drawn(page: Page, shown: Shown) -> None:
    bare = device("eu-west", 200)
    bare["pipelines"][0] |= {"serving": None, "current": None, "previous": None}
    shown.fleet.device_list.append(bare)
    page.goto(shown.address)
    expect(page.locator(".dot[title^='eu-west-200, serves nothing']")).to_have_count(1)


def test_an_unknown_device_is_a_page_that_says_so(page: Page, shown: Shown) -> None:
    answer = page.goto(shown.address + "/devices/nobody")
    assert answer is not None
    assert answer.status == 404
    expect(page.locator("h1")).to_contain_text("no device 'nobody' is enrolled")


CONTRAST = """() => {
  const channels = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const [one, other] = [light(channels(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${element.className} ${element.textContent.trim().slice(0, 30)}`);
  }
  return weak;
}"""
