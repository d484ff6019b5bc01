"""A rollout never leaves its cohort: the composed documents, read by the devices' own `assign`, over whole histories.

The world here has devices that sleep and wake, rollouts that pass, fail, pause and are aborted, and rollbacks. Whatever the
order, a device serves a release only if a released wave or a signed rollback gave it.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_server.core import rollout as machine
from holdfast_server.core.base_rules import BaseRule
from holdfast_server.core.compose import Body, check_room, compose, document
from holdfast_server.core.plan import Member
from holdfast_server.core.planner import plan
from holdfast_server.core.release_in import ReleaseIn, Taken
from holdfast_server.core.rollback import Rollback
from holdfast_server.core.rollout import Moment, Rollout, State
from holdfast_server.core.standing import (
    Condemnation,
    Standing,
    after_rollback,
    after_step,
    check_free,
    destination,
    with_previous,
)
from holdfast_server.core.verdict import WaveVerdict
from holdfast_shared import selector, strict_json
from holdfast_shared.assign import Decision, Target, View, assign
from holdfast_shared.errors import Conflict, HoldfastError
from holdfast_shared.judgement import Verdict
from holdfast_shared.wire.assignment import PAYLOAD_BYTES_MAX, Assignment, ReleaseRef, TimeSpan, Windows
from holdfast_shared.wire.command import WavePlan
from support.rollout_values import PIPELINE, REGIONS, asked, digest, member, placed, ref, release

NOW = Moment(at=1_000, monotonic_us=1_000)
DEVICES = [
    member(f"d-{n}", REGIONS[n % 3], ring="canary" if n < 3 else "field", site="ab"[n % 2]) for n in range(18)
]  # fmt: skip


def issued(body: Body, region: str, seq: int) -> Assignment:
    """The document as a device reads it: through its bytes, within the wire's limits."""
    made = msgspec.structs.replace(document(body, region=region, pipeline=PIPELINE, cause="test"), seq=seq)
    return strict_json.decode(strict_json.encode(made), Assignment, what="document", size_bytes_max=PAYLOAD_BYTES_MAX)


class World:
    """The server's standing, its documents, and devices that act at once on what they last received."""

    def __init__(self) -> None:
        self.standing = Standing()
        self.records: dict[str, Rollout] = {}
        self.seq = 0
        self.documents: dict[str, Assignment] = {}
        self.accepted: dict[str, Assignment] = {}
        self.views = {one.device: View(device=one.device, labels=one.labels) for one in DEVICES}
        self.awake = {one.device for one in DEVICES}
        self.allowed: dict[str, set[str]] = {}  # digest → devices that a wave or a rollback gave it
        self.versions = 0

    def issue(self) -> None:
        self.seq += 1
        for region in REGIONS:
            self.documents[region] = issued(compose(self.standing, region), region, self.seq)
        for record in self.standing.rollouts:
            if record.state is State.RUNNING:
                reached = record.plan.reached(record.released, DEVICES)
                self.allowed.setdefault(record.plan.release.digest, set()).update(one.device for one in reached)
        for one in DEVICES:
            if one.device in self.awake:
                self.accepted[one.device] = self.documents[one.region]
            if one.device in self.accepted:
                self.act(one.device)

    def act(self, device: str) -> None:
        """The device's agent, reduced to its slots. What an urgent decision cannot reach, a stopgap answers."""
        view, decision = self.views[device], self.decision(device)
        target = decision.serve or (decision.stopgap if decision.urgent else None)
        if target is not None and target != view.current:
            assert device in self.allowed.get(target.release.digest, ()), f"{device} left the cohort of {target}"
            self.views[device] = msgspec.structs.replace(view, current=target, previous=view.current)

    def decision(self, device: str) -> Decision:
        return assign([self.accepted[device]], self.views[device])

    def serving(self) -> dict[str, str]:
        return {device: view.current.release.version if view.current else "" for device, view in self.views.items()}

    def begin(self, segment: str, waves: tuple[WavePlan, ...] = (), windows: Windows | None = None) -> Rollout:
        self.versions += 1
        version = f"1.{self.versions}.0"
        what = asked(version, segment=selector.parse(segment), waves=waves, windows=windows)
        made = plan(what, rollout=f"r-{self.versions}", release=release(version), digest=digest(version), fleet=DEVICES)
        check_free(self.standing, made)
        record = machine.planned(with_previous(self.standing, made), by="ann", now=NOW)
        check_room(self.standing, record, REGIONS)
        self.records[record.id] = record
        return self.step(record.id, machine.Start(by="ann"))

    def step(self, rollout: str, event: machine.Event) -> Rollout:
        done = machine.step(self.records[rollout], event, NOW)
        self.records[rollout] = done.record
        self.standing = after_step(self.standing, done)
        self.issue()
        return done.record

    def judge(self, rollout: str, verdict: Verdict) -> Rollout:
        wave = self.records[rollout].released
        return self.step(rollout, machine.Judged(verdict=WaveVerdict(wave=wave, verdict=verdict, why="seen")))

    def finish(self, rollout: str) -> None:
        while self.records[rollout].state is State.RUNNING:
            self.judge(rollout, Verdict.PASS)

    def roll_back(self, segment: str, release_: ReleaseRef, to: ReleaseIn | None = None) -> None:
        match = selector.parse(segment)
        where = destination(self.standing, match, Taken(release=release_), to)
        made = Rollback(
            id=f"b-{self.seq}", pipeline=PIPELINE, release=release_, segment=match, reason="r", requested_by="ann",
            request=digest("r"), requested_at=1, to=where,
        )  # fmt: skip
        self.allowed.setdefault(where.digest, set()).update(
            one.device for one in DEVICES if selector.holds(match, one.labels)
        )
        self.standing, steps = after_rollback(self.standing, made, NOW)
        self.records.update({step.record.id: step.record for step in steps})
        self.issue()


def test_a_finished_rollout_is_the_base_of_everyone_and_one_rule() -> None:
    world = World()
    world.finish(world.begin("*").id)
    assert set(world.serving().values()) == {"1.1.0"}
    assert [len(found.rules) for found in world.documents.values()] == [1, 1, 1]


def test_a_rollouts_windows_hold_for_whoever_comes_late_and_never_for_going_back() -> None:
    world = World()
    night = Windows(switch=(TimeSpan(from_="22:00", to="04:00"),))
    world.finish(world.begin("*").id)
    windowed = world.begin("*", windows=night)
    assert world.documents["eu-west"].rules[0].windows == night
    world.finish(windowed.id)
    assert [one.windows for one in world.documents["eu-west"].rules] == [night]
    world.roll_back("region=eu-west", windowed.plan.release)
    assert [one.windows for one in world.documents["eu-west"].rules if one.release == ref("1.1.0")] == [None]


def test_after_a_halt_whoever_serves_the_release_returns_to_the_base() -> None:
    world = World()
    world.finish(world.begin("*").id)
    bad = world.begin("*")
    world.judge(bad.id, Verdict.PASS)
    assert "1.2.0" in world.serving().values()
    world.judge(bad.id, Verdict.FAIL)
    assert set(world.serving().values()) == {"1.1.0"}
    assert all(not found.rules[0].match for found in world.documents.values())


def test_a_device_that_slept_through_the_halt_never_begins() -> None:
    """It wakes to the newest document, or starts with the last one it had: neither gives it the release."""
    world = World()
    world.finish(world.begin("*").id)
    sleeper = "d-17"
    world.awake.discard(sleeper)
    bad = world.begin("*", (WavePlan(share=10_000, labels={"ring": "canary"}), WavePlan(share=10_000)))
    world.judge(bad.id, Verdict.FAIL)
    world.awake.add(sleeper)
    world.issue()
    assert world.serving()[sleeper] == "1.1.0"


def test_a_halted_first_install_moves_nobody() -> None:
    world = World()
    first = world.begin("*")
    before = world.serving()
    world.judge(first.id, Verdict.FAIL)
    assert world.serving() == before
    assert {version for version in before.values() if version} == {"1.1.0"}


def test_a_paused_rollout_keeps_who_has_it_and_lets_nobody_begin() -> None:
    world = World()
    world.finish(world.begin("*").id)
    world.awake.discard("d-0")
    running = world.begin("*", (WavePlan(share=10_000, labels={"ring": "canary"}), WavePlan(share=10_000)))
    world.step(running.id, machine.Pause(by="ann"))
    world.awake.add("d-0")
    world.issue()
    assert world.serving()["d-1"] == "1.2.0"
    assert world.serving()["d-0"] == "1.1.0"
    world.step(running.id, machine.Resume(by="ann"))
    assert world.serving()["d-0"] == "1.2.0"
    world.step(running.id, machine.Abort(by="ann"))
    assert set(world.serving().values()) == {"1.1.0"}


@pytest.mark.parametrize("segment", ["region=eu-west", "site=a", "region in (eu-west, us-east), ring=field", "*"])
def test_a_segment_rollback_moves_exactly_the_segment(segment: str) -> None:
    world = World()
    world.finish(world.begin("*").id)
    world.finish(world.begin("*").id)
    world.roll_back(segment, ref("1.2.0"))
    inside = {one.device for one in DEVICES if selector.holds(selector.parse(segment), one.labels)}
    assert {device for device, version in world.serving().items() if version == "1.1.0"} == inside
    newcomer = member("new", "eu-west", ring="field", site="a")
    view = View(device="new", labels=newcomer.labels)
    decision = assign([world.documents["eu-west"]], view)
    joins = selector.holds(selector.parse(segment), newcomer.labels)
    assert decision.serve == Target(release=ref("1.1.0" if joins else "1.2.0"))


def test_a_part_taken_back_from_a_running_rollout_pauses_the_rest_where_it_is() -> None:
    world = World()
    world.finish(world.begin("*").id)
    running = world.begin("*", (WavePlan(share=10_000),))
    world.roll_back("region=eu-west", running.plan.release.ref)
    assert world.records[running.id].state is State.PAUSED
    for one in DEVICES:
        assert world.serving()[one.device] == ("1.1.0" if one.region == "eu-west" else "1.2.0")


@pytest.mark.parametrize(("segment", "code"), [("region=eu-west", "overlap"), ("site=a", "overlap"), ("*", "overlap")])
def test_active_rollouts_may_not_overlap(segment: str, code: str) -> None:
    world = World()
    world.begin("region=eu-west")
    with pytest.raises(Conflict) as caught:
        world.begin(segment)
    assert caught.value.code == code
    world.begin("region=us-east")


def test_a_condemned_release_and_the_base_itself_are_no_plan() -> None:
    world = World()
    world.judge(world.begin("*").id, Verdict.FAIL)
    world.versions = 0
    with pytest.raises(Conflict, match="condemned"):
        world.begin("region=eu-west")
    world.versions = 1
    world.finish(world.begin("region=eu-west").id)
    world.versions = 1
    with pytest.raises(Conflict, match="already"):
        world.begin("*")


segments = st.sampled_from(
    ("*", "region=eu-west", "region!=eu-west", "site=a", "region=us-east, site=b", "ring=canary")
)
waves = st.sampled_from(
    (
        (),
        (WavePlan(share=2_000), WavePlan(share=6_000)),
        (WavePlan(share=10_000, regions=("eu-west",)), WavePlan(share=10_000)),
        (WavePlan(share=10_000, labels={"ring": "canary"}), WavePlan(share=10_000)),
    )
)
verbs = st.one_of(
    st.tuples(st.just("begin"), segments, waves),
    st.tuples(st.just("begin"), segments, waves),
    st.tuples(st.just("judge"), st.integers(0, 3), st.sampled_from((Verdict.PASS, Verdict.PASS, Verdict.FAIL))),
    st.tuples(st.just("finish"), st.integers(0, 3)),
    st.tuples(st.sampled_from(("pause", "resume", "abort")), st.integers(0, 3)),
    st.tuples(st.just("roll back"), segments, st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.sampled_from(("sleep", "wake")), st.integers(0, 17)),
)


def do(world: World, verb: tuple[object, ...]) -> None:
    """One thing that happens. Numbers count back from the newest rollout or version, so that they mostly name one."""
    operators: dict[str, type[machine.Pause | machine.Resume | machine.Abort]] = {
        "pause": machine.Pause,
        "resume": machine.Resume,
        "abort": machine.Abort,
    }
    begun = list(reversed(world.records))
    match verb:
        case ("begin", str(segment), tuple(chosen)):
            world.begin(segment, chosen)
        case ("judge", int(n), Verdict() as verdict):
            world.judge(begun[n % len(begun)], verdict)
        case ("finish", int(n)):
            world.finish(begun[n % len(begun)])
        case (("pause" | "resume" | "abort") as word, int(n)):
            world.step(begun[n % len(begun)], operators[str(word)](by="ann"))
        case ("roll back", str(segment), int(n), int(to)):
            refs = [world.records[one].plan.release for one in begun]
            world.roll_back(segment, refs[n % len(refs)].ref, refs[to % len(refs)] if to else None)
        case ("sleep", int(n)):
            world.awake.discard(f"d-{n}")
        case ("wake", int(n)):
            world.awake.add(f"d-{n}")
            world.issue()
        case _:
            raise AssertionError(verb)


@given(st.lists(verbs, min_size=4, max_size=40))
@settings(max_examples=150, deadline=None)
def test_no_device_ever_leaves_the_reached_cohort(history: list[tuple[object, ...]]) -> None:
    """`World.act` asserts it at every activation. In the end all wake, and whoever can is off what is condemned for it."""
    world = World()
    world.finish(world.begin("region!=ap-south").id)  # in one region the first rollout is a first install
    for verb in history:
        try:
            do(world, verb)
        except HoldfastError:
            continue
    world.awake = {one.device for one in DEVICES}
    world.issue()
    for one in DEVICES:
        view = world.views[one.device]
        assert not world.decision(one.device).urgent or has_nothing_else(world, one)
        assert world.decision(one.device).serve in (None, view.current)


def has_nothing_else(world: World, one: Member) -> bool:
    """The base names nothing good for this device: a halted first install."""
    decision = world.decision(one.device)
    return decision.serve is None and decision.stopgap is None


def test_rollbacks_always_fit_and_mean_the_same_while_they_can_be_joined() -> None:
    """A rollback site by site, 60 times over, is one rule and one condemnation."""
    standing = Standing(base=(BaseRule(match=(), release=placed("2.0.0"), cause="r", standby=placed("1.0.0")),))
    for n in range(60):
        standing = rolled_back(standing, f"site=site-{n}", "2.0.0", "1.0.0")
        body = compose(standing, "eu-west")
        assert not body.omitted
        issued(body, "eu-west", n)
    assert len(body.rules) == 2
    assert len(body.condemned) == 1


def test_a_rollback_fits_even_when_nothing_can_be_joined() -> None:
    """The newest always stands; what is left out is said, and moves nobody."""
    standing = Standing(base=(BaseRule(match=(), release=placed("2.0.0"), cause="r", standby=placed("1.0.0")),))
    for n in range(90):
        written = f"a{n % 9}=v{n}, b{n % 7}=w{n}"
        standing = rolled_back(standing, written, "2.0.0", "1.0.0")
        if n not in (0, 40, 62, 63, 64, 89):
            continue
        body = compose(standing, "eu-west")
        made = issued(body, "eu-west", n)
        labels = {f"a{n % 9}": f"v{n}", f"b{n % 7}": f"w{n}", "region": "eu-west"}
        view = View(device="d", labels=labels, current=Target(release=ref("2.0.0")))
        assert assign([made], view).serve == Target(release=ref("1.0.0"))
        assert assign([made], view).urgent
    assert body.omitted


def test_a_plan_that_would_leave_no_room_for_rollbacks_is_refused() -> None:
    condemned = tuple(Condemnation(incident=f"b-{n}", match=(), release=ref(f"0.{n}.0")) for n in range(49))
    made = plan(asked(), rollout="r-1", release=release(), digest=digest("1.2.0"), fleet=DEVICES)
    record = machine.planned(made, by="ann", now=NOW)
    check_room(Standing(condemned=condemned[:48]), record, REGIONS)
    with pytest.raises(Conflict, match="room is kept for rollbacks"):
        check_room(Standing(condemned=condemned), record, REGIONS)


def rolled_back(standing: Standing, segment: str, version: str, to: str) -> Standing:
    made = Rollback(
        id=f"b-{segment[:20]}", pipeline=PIPELINE, release=ref(version), segment=selector.parse(segment), reason="r",
        requested_by="ann", request=digest("r"), requested_at=1, to=placed(to),
    )  # fmt: skip
    return after_rollback(standing, made, NOW)[0]
