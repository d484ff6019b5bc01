"""A rollout through shares of the requests, over a real store: each wave waits until devices say that they give its share."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_cli import watch
from holdfast_server.web import devices, rollouts
from holdfast_shared import selector
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.assignment import Requests
from holdfast_shared.wire.command import RolloutStart, WavePlan
from support.rollout_bench import Bench

SHARES = tuple(WavePlan(share=10_000, requests=share) for share in (500, 2_000, 10_000))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, light=9)
    made.publish("1.0.0", "1.1.0")
    return made


def test_it_walks_through_its_shares_to_all_requests(bench: Bench) -> None:
    bench.install("1.0.0")
    rollout = bench.plan("1.1.0", waves=SHARES)
    bench.command(RolloutStart(rollout=rollout))
    seen: list[Requests | None] = []
    for _ in range(60):
        if bench.rollout(rollout)["state"] == "finished":
            break
        bench.round()
        given = {one.requests for one in bench.devices.values()}
        assert len(given) == 1
        seen += given - set(seen[-1:])
    assert seen == [Requests(share=500), Requests(share=2_000), None]
    shown = bench.rollout(rollout)
    assert shown["state"] == "finished"
    assert [wave["requests"] and wave["requests"]["in_words"] for wave in shown["waves"]] == [
        "5 % of requests",
        "20 % of requests",
        None,
    ]
    bench.round()
    assert {rule.requests for one in bench.documents().values() for rule in one.rules} == {None}


def test_a_device_that_still_gives_less_holds_its_wave(bench: Bench) -> None:
    """It serves the release, and has good counts; but not yet of this wave's requests."""
    bench.install("1.0.0")
    rollout = bench.plan("1.1.0", waves=SHARES)
    bench.command(RolloutStart(rollout=rollout))
    while bench.rollout(rollout)["waves"][0]["state"] != "passed":
        bench.round()
    for one in bench.devices.values():
        one.deaf = True
    for _ in range(8):
        bench.round()
    waves = bench.rollout(rollout)["waves"]
    assert [wave["state"] for wave in waves] == ["passed", "released", "waiting"]
    assert "report that they serve it" in waves[1]["why"]


def test_a_first_release_cannot_have_a_share(bench: Bench) -> None:
    with pytest.raises(Malformed, match="no release that could answer the others"):
        bench.plan("1.0.0", waves=SHARES)


def test_people_see_which_requests_a_wave_gives(bench: Bench) -> None:
    """On the page, in the terminal, and of a device what it says of itself."""
    bench.install("1.0.0")
    rollout = bench.plan("1.1.0", waves=SHARES, requests=Requests(share=10_000, segment=selector.parse("tier=beta")))
    bench.command(RolloutStart(rollout=rollout))
    bench.round()
    shown = bench.rollout(rollout)
    said = "5 % of requests with tier=beta"
    (drawn,) = rollouts.draw({"rollouts": [shown]}, {})
    assert [wave.requests for wave in drawn.waves] == [
        said,
        "20 % of requests with tier=beta",
        "100 % of requests with tier=beta",
        "",
    ]
    assert [said in line for line in watch.drawn(shown)].count(True) == 1
    new, old = ({"version": version, "digest": version, "ready": True} for version in ("1.1.0", "1.0.0"))
    report = {"pipeline": "digits", "state": "trial", "serving": new, "candidate": new, "current": old}
    report |= {"requests": shown["waves"][0]["requests"]}
    device = devices.draw({"device": "d-1", "region": "eu-west", "pipelines": [report]}, {})
    assert [(one.name, one.answers) for one in device.pipelines[0].slots if one.serves] == [
        ("current", "the others"),
        ("candidate", said),
    ]
