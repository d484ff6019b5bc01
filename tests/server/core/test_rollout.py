"""Transcripts of the rollout machine: events in, state and commands out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_server.core import rollout as machine
from holdfast_server.core.planner import plan
from holdfast_server.core.rollout import (
    Abort,
    Compose,
    Condemn,
    Decide,
    Event,
    Fold,
    Judged,
    Moment,
    Pause,
    Resume,
    Rollout,
    Start,
    State,
    TakenBack,
    WaveState,
    step,
)
from holdfast_server.core.verdict import WaveVerdict
from holdfast_shared.errors import Conflict
from holdfast_shared.judgement import Verdict
from support.rollout_values import asked, digest, fleet, ref, release

SECOND = 1_000_000


def at(second: float) -> Moment:
    return Moment(at=int(second * SECOND), monotonic_us=int(second * SECOND) + 7)


def fresh(*, previous: bool = True) -> Rollout:
    made = plan(
        asked(deadline_s=60, soak_s=3), rollout="r-1", release=release(), digest=digest("1.2.0"), fleet=fleet(300)
    )
    if previous:
        made = msgspec.structs.replace(made, previous=ref("1.1.0"))
    return machine.planned(made, by="ann", now=at(0))


def verdict(wave: int, found: Verdict) -> Judged:
    return Judged(verdict=WaveVerdict(wave=wave, verdict=found, why=f"because {found}"))


def play(record: Rollout, *events: tuple[float, Event]) -> tuple[Rollout, list[machine.Command]]:
    commands: list[machine.Command] = []
    for second, event in events:
        record, more = step(record, event, at(second))
        commands = list(more)
    return record, commands


def kinds(commands: list[machine.Command]) -> list[type]:
    return [type(command) for command in commands]


def test_starting_releases_the_first_wave_alone() -> None:
    record, commands = play(fresh(), (1, Start(by="ann")))
    assert record.state is State.RUNNING
    assert [wave.state for wave in record.waves] == [WaveState.RELEASED] + [WaveState.WAITING] * 4
    assert kinds(commands) == [Compose, Decide]
    assert record.waves[0].deadline_at == 61 * SECOND


def test_passes_lead_through_all_waves_to_the_fold() -> None:
    events = [(float(n + 1), verdict(n, Verdict.PASS)) for n in range(1, 6)]
    record, commands = play(fresh(), (1, Start(by="ann")), *events)
    assert record.state is State.FINISHED
    assert all(wave.state is WaveState.PASSED for wave in record.waves)
    assert kinds(commands) == [Fold, Compose, Decide]


def test_a_breach_halts_and_condemns_at_its_own_moment() -> None:
    record, commands = play(fresh(), (1, Start(by="ann")), (2, verdict(1, Verdict.FAIL)))
    assert record.state is State.HALTED
    assert record.waves[0].state is WaveState.FAILED
    assert record.halted == at(2)
    assert kinds(commands) == [Condemn, Compose, Decide]
    decided = commands[-1]
    assert isinstance(decided, Decide)
    assert "go back to 1.1.0" in decided.why
    assert decided.verdict is not None


def test_a_halted_first_install_says_that_nothing_is_there_to_go_back_to() -> None:
    _, commands = play(fresh(previous=False), (1, Start(by="ann")), (2, verdict(1, Verdict.FAIL)))
    decided = commands[-1]
    assert isinstance(decided, Decide)
    assert "no earlier release to go back to" in decided.why


def test_a_failed_verdict_latches() -> None:
    halted, _ = play(fresh(), (1, Start(by="ann")), (2, verdict(1, Verdict.FAIL)))
    for event in (verdict(1, Verdict.PASS), verdict(2, Verdict.PASS), TakenBack(rollback="b-1", whole=True)):
        assert step(halted, event, at(3)) == machine.Step(halted)


def test_a_late_verdict_on_an_earlier_wave_changes_nothing() -> None:
    record, _ = play(fresh(), (1, Start(by="ann")), (2, verdict(1, Verdict.PASS)))
    assert step(record, verdict(1, Verdict.PASS), at(3)) == machine.Step(record)
    assert step(record, verdict(1, Verdict.FAIL), at(3)) == machine.Step(record)


def test_silence_pauses_at_the_deadline_and_never_passes() -> None:
    record, commands = play(fresh(), (1, Start(by="ann")), (60.9, verdict(1, Verdict.INSUFFICIENT)))
    assert record.state is State.RUNNING
    assert commands == []
    record, commands = play(record, (61, verdict(1, Verdict.INSUFFICIENT)))
    assert record.state is State.PAUSED
    assert "no verdict by its deadline: because insufficient" in record.cause
    assert kinds(commands) == [Compose, Decide]
    assert play(record, (62, verdict(1, Verdict.PASS)))[0].state is State.PAUSED


def test_a_resume_counts_the_deadline_anew() -> None:
    record, _ = play(fresh(), (1, Start(by="ann")), (30, Pause(by="ann")), (500, Resume(by="bob")))
    assert record.state is State.RUNNING
    assert record.waves[0].deadline_at == 560 * SECOND
    assert record.waves[0].released_at == SECOND


def test_a_paused_rollout_is_still_watched() -> None:
    record, commands = play(fresh(), (1, Start(by="ann")), (2, Pause(by="ann")), (3, verdict(1, Verdict.FAIL)))
    assert record.state is State.HALTED
    assert Condemn in kinds(commands)


def test_taken_back_from_all_ends_it_and_from_a_part_pauses_it() -> None:
    running, _ = play(fresh(), (1, Start(by="ann")))
    assert step(running, TakenBack(rollback="b-1", whole=True), at(2)).record.state is State.HALTED
    part = step(running, TakenBack(rollback="b-1", whole=False), at(2)).record
    assert part.state is State.PAUSED
    assert "b-1" in part.cause


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], Pause(by="x")),
        ([], Resume(by="x")),
        ([Start(by="x")], Start(by="x")),
        ([Start(by="x")], Resume(by="x")),
        ([Abort(by="x")], Start(by="x")),
        ([Start(by="x"), Abort(by="x")], Abort(by="x")),
    ],
)
def test_an_operator_is_told_what_its_state_does_not_allow(before: list[Event], event: Event) -> None:
    record, _ = play(fresh(), *((1.0, one) for one in before))
    with pytest.raises(Conflict, match="rollout r-1 is") as caught:
        step(record, event, at(2))
    assert caught.value.next_step


def test_a_restarted_server_writes_its_documents_once_more() -> None:
    running, _ = play(fresh(), (1, Start(by="ann")))
    assert machine.resume(running) == (Compose(),)
    assert machine.resume(fresh()) == ()


events = st.lists(
    st.one_of(
        st.builds(Start, by=st.just("a")),
        st.builds(Pause, by=st.just("a")),
        st.builds(Resume, by=st.just("a")),
        st.builds(Abort, by=st.just("a")),
        st.builds(verdict, st.integers(1, 5), st.sampled_from(Verdict)),
        st.builds(TakenBack, rollback=st.just("b"), whole=st.booleans()),
    ),
    max_size=25,
)
START = fresh()


@given(events)
def test_waves_are_released_in_order_each_after_a_pass(sequence: list[Event]) -> None:
    """For any sequence of events: a wave is released only when all before it passed, and the end is the end."""
    record = START
    for second, event in enumerate(sequence):
        before = record
        try:
            record, commands = step(record, event, at(second))
        except Conflict:
            assert not isinstance(event, Judged | TakenBack)
            continue
        if before.state in (State.HALTED, State.FINISHED, State.ABORTED):
            assert record == before
            assert commands == ()
        states = [wave.state for wave in record.waves]
        released = record.released
        assert all(state is WaveState.PASSED for state in states[: max(released - 1, 0)])
        assert all(state is WaveState.WAITING for state in states[released:])
        assert (Fold in kinds(list(commands))) == (
            record.state is State.FINISHED and before.state is not State.FINISHED
        )
