"""A slot is a release in an environment: each is fetched, tried, left, condemned and mended as that pair."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast_agent.core.commands import CollectGarbage, Command, StartFetch, Tell, VerifySlots
from holdfast_agent.core.events import SlotsVerified
from holdfast_gateway.control import Route, Routes
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import Condemned
from support.playbook import Playbook, bad, counts, digest, own, ref, rule, target

PERIOD_S = 3600
# Release 2 in two environments.
OLD, NEW = "2@7", "2@8"


@pytest.fixture
def device() -> Playbook:
    """Release 2 serves in the new environment; the same release in the old one is its refuge."""
    found = Playbook(own_=own(verify_s=PERIOD_S))
    found.connect()
    for name in (OLD, NEW):
        found.serve(name)
    found.ready(OLD, NEW)
    return found


def kept(commands: Sequence[Command]) -> frozenset[str]:
    """What the last collection of garbage keeps."""
    return [one.keep for one in commands if isinstance(one, CollectGarbage)][-1]


def fetched(commands: Sequence[Command]) -> list[Target]:
    return [one.target for one in commands if isinstance(one, StartFetch)]


def route(commands: Sequence[Command]) -> Route:
    """The last that the gateway was told."""
    told = [one.message for one in commands if isinstance(one, Tell) and isinstance(one.message, Routes)]
    return told[-1].routes[0]


def here(device: Playbook) -> tuple[Target | None, Target | None]:
    return device.pipeline.current, device.pipeline.previous


def test_the_same_release_in_another_environment_is_fetched_tried_and_committed() -> None:
    """As any target: the fetch is told both digests, and the gateway routes the pair."""
    device = Playbook()
    device.connect()
    device.serve(OLD)
    assert fetched(device.assigned(rule(NEW))) == [target(NEW)]
    assert route(device.fetched(NEW)).testing == target(NEW)
    device.ready(OLD, NEW)
    device.ready(OLD, NEW)
    device.tally(counts(NEW, requests=50))
    device.wait(11)
    assert here(device) == (target(NEW), target(OLD))


def test_what_either_slot_needs_is_kept(device: Playbook) -> None:
    """Both environments and the one release; a third environment that no slot names any more goes."""
    device.assigned(rule("2@9"))
    device.to_trial("2@9")
    device.tally(counts("2@9", requests=50))
    assert kept([*device.wait(11), *device.ready("2@9", NEW), *device.wait(1)]) == {
        digest("2"),
        digest("8"),
        digest("9"),
    }


@pytest.mark.parametrize(
    "condemned",
    [
        Condemned(environment=digest("8"), incident="i"),
        Condemned(release=ref("2"), environment=digest("8"), incident="i"),
    ],
    ids=["the environment alone", "the pair"],
)
def test_a_condemned_environment_is_left_at_once_and_the_release_stays(device: Playbook, condemned: Condemned) -> None:
    """No network and no download: the same release digest, in the slot that holds it in the other environment."""
    done = device.assigned(rule(NEW), rule(OLD), condemned=[condemned])
    assert fetched(done) == []
    assert route(done).serving == target(OLD)
    assert device.pipeline.current == target(OLD)
    assert device.pipeline.activations[-1].cause == "rollback"
    device.ready(OLD)
    device.wait(60)
    assert device.pipeline.serving == target(OLD)


def test_a_condemned_release_is_left_in_every_environment(device: Playbook) -> None:
    """The refuge holds the same release, so it is no way out: the target is fetched, and what serves serves on."""
    done = device.assigned(rule(NEW), rule("1"), condemned=[bad("2")])
    assert fetched(done) == [target("1")]
    assert device.pipeline.serving == target(NEW)


def test_what_fails_in_an_environment_condemns_the_pair_here(device: Playbook) -> None:
    """The same models go on in the other one, which nothing condemns; the pair is not tried again."""
    done = device.tally(counts(NEW, requests=60, nulls=30))
    assert route(done).serving == target(OLD)
    assert [one.target for one in device.pipeline.condemned_here] == [target(NEW)]
    device.ready(OLD)
    assert fetched(device.assigned(rule(NEW), rule(OLD))) == []
    assert device.pipeline.serving == target(OLD)


def test_a_rotten_environment_is_built_again_and_the_release_is_not_blamed(device: Playbook) -> None:
    read = [one.releases for one in device.wait(PERIOD_S + 1) if isinstance(one, VerifySlots)]
    assert read == [frozenset({digest("2"), digest("7"), digest("8")})]
    whole = frozenset({digest("2"), digest("7")})
    done = device.play(SlotsVerified(whole=whole, damaged=frozenset({digest("8")}), draw=0.5))
    assert fetched(done) == [target(NEW)]
    assert device.report().degraded
    device.fetched(NEW)
    assert device.device.record.damaged == ()
    assert device.pipeline.condemned_here == ()
    assert device.pipeline.serving == target(NEW)
