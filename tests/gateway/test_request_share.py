"""A share of the requests: which of two slots a request is asked at first, and that nothing else changes for it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.core.record import PipelineRecord, State
from holdfast_gateway.control import Route, Switched
from holdfast_gateway.request_share import READ_BYTES_MAX, RequestShare
from holdfast_shared import cohort, selector
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import ReleaseRef, Requests
from holdfast_worker.protocol import NO_HEADER
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, eventually, installed, running_gateway, write_record
from support.gateway_traffic import Load

NEW: Final = Target(release=ReleaseRef(version="1.1.0", digest="sha256:" + "b" * 64))
OLD: Final = Target(release=ReleaseRef(version="1.0.0", digest="sha256:" + "a" * 64))
SESSIONS: Final = [f"session-{number}" for number in range(200)]
HALF: Final = Requests(share=5_000)


def share(of: int, segment: str = "*") -> RequestShare:
    return RequestShare(Requests(share=of, segment=selector.parse(segment)), NEW)


def body(**said: Any) -> bytes:
    return json.dumps({**said, "inputs": []}).encode()


def has(found: RequestShare, **said: Any) -> bool:
    return found.has(body(**said), NO_HEADER)


# ---------------------------------------------------------------- whose a request is
def test_a_session_is_the_candidates_by_its_bucket_whatever_its_id() -> None:
    found = share(2_000)
    for session in SESSIONS:
        expected = cohort.bucket(NEW.release.digest, session) < 2_000
        for number in range(3):
            assert has(found, id=f"{session}-{number}", parameters={"session": session}) is expected
            assert has(found, id=session) is expected


def test_who_had_the_candidate_still_has_it_when_the_share_grows() -> None:
    by_share = [{one for one in SESSIONS if has(share(of), id=one)} for of in (0, 100, 500, 2_000, 10_000)]
    assert all(less <= more for less, more in itertools.pairwise(by_share))
    assert (by_share[0], by_share[-1]) == (set(), set(SESSIONS))


def test_a_number_is_a_session_as_its_text_is() -> None:
    found = share(5_000)
    for number in range(50):
        expected = has(found, parameters={"session": str(number)})
        assert has(found, parameters={"session": number}, id="x") is expected


@settings(max_examples=20)
@given(
    of=st.integers(0, 10_000),
    body=st.sampled_from([b"{}", b"[", b"", b'{"id":""}', b'{"parameters":{"session":true}}']),
)
def test_of_requests_that_belong_to_nobody_the_share_is_exact(of: int, body: bytes) -> None:
    found = share(of)
    assert sum(found.has(body, NO_HEADER) for _ in range(cohort.BUCKETS)) == of


def test_they_are_spread_and_do_not_come_in_runs() -> None:
    """Of a tenth of the requests each twenty in a row have some, and none has many."""
    found = share(1_000)
    drawn = [found.has(b"{}", NO_HEADER) for _ in range(2_000)]
    runs = [sum(drawn[start : start + 20]) for start in range(len(drawn) - 20)]
    assert (min(runs) >= 1, max(runs) <= 4) == (True, True)


def test_a_segment_is_of_the_requests_own_parameters() -> None:
    found = share(10_000, "tier=beta, kind not in (batch, replay)")
    assert has(found, parameters={"tier": "beta"})
    assert has(found, parameters={"tier": "beta", "kind": "live"})
    assert not has(found, parameters={"tier": "beta", "kind": "batch"})
    assert not has(found, parameters={"tier": "other"})
    assert not has(found, parameters={"tier": 7})
    assert not has(found)
    assert not found.has(b"no JSON at all", NO_HEADER)


def test_of_a_segment_only_the_share_is_the_candidates() -> None:
    found = share(2_000, "tier=beta")
    for session in SESSIONS:
        expected = cohort.bucket(NEW.release.digest, session) < 2_000
        assert has(found, parameters={"session": session, "tier": "beta"}) is expected
        assert not has(found, parameters={"session": session, "tier": "alpha"})


def test_of_the_binary_extension_the_header_alone_is_read() -> None:
    found = share(5_000)
    for session in SESSIONS:
        header = body(parameters={"session": session})
        assert found.has(header + b"\xff\x00{" * 9, len(header)) is has(found, id=session)


HOSTILE: Final = [
    b"[" * 100_000,
    b'{"parameters":' + b'{"a":' * 100_000,
    b'{"id":"\\ud800"}',
    b'{"id":"\xff"}',
    b'{"id":1e999}',
    b'{"parameters":{"session":' + b"9" * 100_000 + b"}}",
    b'{"parameters":{"session":["a"]},"id":{"b":1}}',
    b'{"parameters":[]}',
    b'{"id":"a","id":"b"}',
    b"null",
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_read_is_refused_by_nobody_here(raw: bytes) -> None:
    assert not share(0, "tier=beta").has(raw, NO_HEADER)
    assert share(10_000).has(raw, NO_HEADER)


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    share(5_000, "tier!=beta").has(raw, NO_HEADER)
    share(5_000).has(raw, len(raw) // 2)


def test_more_than_the_limit_is_not_read() -> None:
    """It belongs to nobody, so that it holds nobody up."""
    raw = b'{"id":"me","inputs":"' + b"x" * READ_BYTES_MAX + b'"}'
    drawn = {share(5_000).has(raw, NO_HEADER) for _ in range(100)}
    assert drawn == {True, False}


def test_there_is_no_share_without_two_slots() -> None:
    whole = Route(pipeline="p", serving=NEW, refuge=OLD)
    some = Route(pipeline="p", serving=NEW, refuge=OLD, requests=HALF)
    assert RequestShare.of(whole, None) is None
    assert RequestShare.of(Route(pipeline="p", serving=NEW, requests=HALF), None) is None
    found = RequestShare.of(some, None)
    assert found is not None
    assert RequestShare.of(some, found) is found
    assert RequestShare.of(whole, found) is None


# ---------------------------------------------------------------- with a gateway
def ask(bench: GatewayBench, session: str = "", version: str = "", do: dict[str, str] | None = None) -> str:
    """The version that answered; fails when none did."""
    with bench.http() as http:
        status, answer = http.infer_raw(body(parameters={"session": session}, do=do or {}), version)
    assert status == 200, answer
    return str(answer["model_version"])


def two(bench: GatewayBench, requests: Requests | None = HALF) -> tuple[AgentEnd, Target, Target]:
    """1.1.0 is on trial beside 1.0.0, and both are ready."""
    old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
    agent = bench.agent()
    agent.until_in_force(agent.route(Route(pipeline=PIPELINE, serving=new, refuge=old, requests=requests)))
    agent.until_state(old, "ready")
    return agent, old, new


def theirs(new: Target, session: str, of: int = 5_000) -> str:
    return "1.1.0" if cohort.bucket(new.release.digest, session) < of else "1.0.0"


@pytest.mark.slow
def test_each_session_has_its_slot_and_each_slot_its_own_counts(bench: GatewayBench) -> None:
    agent, old, new = two(bench)
    answered = Counter(ask(bench, session) for session in SESSIONS[:60])
    again = [ask(bench, session) for session in SESSIONS[:60]]
    assert again == [theirs(new, session) for session in SESSIONS[:60]]
    assert answered == Counter(again)
    windows = {one.release: one.requests for one in agent.windows()}
    assert windows == {old.release: 2 * answered["1.0.0"], new.release: 2 * answered["1.1.0"]}
    assert [one.target for one in agent.heard if isinstance(one, Switched)] == [new]


@pytest.mark.slow
def test_a_request_for_a_version_is_answered_by_it(bench: GatewayBench) -> None:
    two(bench, Requests(share=100))
    assert [ask(bench, session, "1.1.0") for session in SESSIONS[:8]] == ["1.1.0"] * 8
    assert [ask(bench, session, "1.0.0") for session in SESSIONS[:8]] == ["1.0.0"] * 8
    with bench.http() as http:
        status, answer = http.infer_raw(body(), "0.9.0")
        assert (status, answer["error"]) == (
            404,
            "digits: version 0.9.0 does not serve here now; version 1.1.0 and 1.0.0 does",
        )
        assert http.get(f"/v2/models/{PIPELINE}")[1]["versions"] == ["1.1.0", "1.0.0"]
        assert http.get(f"/v2/models/{PIPELINE}/versions/1.0.0")[1]["versions"] == ["1.0.0"]
        _, _, index = http.ask("POST", "/v2/repository/index", b"")
        assert [(one["version"], one["state"]) for one in json.loads(index)] == [
            ("1.1.0", "READY"),
            ("1.0.0", "READY"),
        ]
        metrics = http.ask("GET", "/metrics")[2].decode()
    assert 'holdfast_serving{model="digits",version="1.0.0"} 1' in metrics
    assert 'holdfast_request_share{model="digits",version="1.1.0"} 0.01' in metrics


@pytest.mark.slow
@pytest.mark.parametrize("how", ["null", "error", "crash"])
def test_what_one_slot_cannot_answer_the_other_does_once(bench: GatewayBench, how: str) -> None:
    agent, old, new = two(bench)
    mine = next(one for one in SESSIONS if theirs(new, one) == "1.1.0")
    other = next(one for one in SESSIONS if theirs(new, one) == "1.0.0")
    assert ask(bench, mine, do={"1.1.0": how}) == "1.0.0"
    if how == "crash":
        agent.until_state(new, "ready", since=len(agent.heard))
    assert ask(bench, other, do={"1.0.0": how}) == "1.1.0"
    counted = {one.release: (one.requests, one.failed_over) for one in agent.windows()}
    assert counted == {old.release: (2, 1), new.release: (2, 1)}


@pytest.mark.slow
def test_a_share_changes_without_a_lost_request_and_without_a_restarted_worker(bench: GatewayBench) -> None:
    agent, old, new = two(bench, Requests(share=100))
    with Load(bench) as load:
        for requests in (Requests(share=2_000), HALF, None, Requests(share=0)):
            agent.route(Route(pipeline=PIPELINE, serving=new, refuge=old, requests=requests))
            load.until_answered_by("1.0.0" if requests == Requests(share=0) else "1.1.0")
        begun = [len(own) + 1 for own in load.versions_each]  # one more was under way
        load.until_answered_by("1.0.0", 50)
        assert {one for own, start in zip(load.versions_each, begun, strict=True) for one in own[start:]} == {"1.0.0"}
    assert load.failed == []
    assert {agent.until_state(one, "ready").loads for one in (old, new)} == {1}


@pytest.mark.slow
def test_a_gateway_that_starts_alone_honours_the_share_of_the_record(tmp_path: Path) -> None:
    """With a standby that is cold: the slot that answers the others is no standby."""
    with running_gateway(tmp_path, standby="cold") as bench:
        bench.stop()
        old, new = installed(bench.folder, "1.0.0"), installed(bench.folder, "1.1.0")
        pipeline = PipelineRecord(state=State.TRIAL, current=old, candidate=new, requests=HALF)
        write_record(bench.folder, digits=pipeline)
        bench.start()
        agent = bench.agent()
        agent.until_state(old, "ready")
        agent.until_state(new, "ready")
        for session in SESSIONS[:20]:
            assert ask(bench, session) == theirs(new, session)


@pytest.mark.slow
def test_what_a_document_condemns_answers_nothing_when_the_gateway_starts_alone(bench: GatewayBench) -> None:
    """`current` would answer the others, and its own failures would go to it; nobody is here who read the document."""
    bench.stop()
    older, old, new = (installed(bench.folder, version) for version in ("0.9.0", "1.0.0", "1.1.0"))
    pipeline = PipelineRecord(
        state=State.TRIAL, current=old, previous=older, candidate=new, requests=HALF, barred=(old.key,)
    )
    write_record(bench.folder, digits=pipeline)
    bench.start()
    agent = bench.agent()
    agent.until_state(new, "ready")
    agent.until_state(older, "ready")
    assert {ask(bench, session) for session in SESSIONS[:20]} == {"1.1.0"}
    with bench.http() as http:
        assert http.infer(v1_1_0="null")[1]["model_version"] == "0.9.0"


@pytest.mark.slow
def test_while_one_of_the_two_is_away_the_other_answers_all(bench: GatewayBench) -> None:
    """And each session is back where it was when the slot is."""
    agent, old, new = two(bench)
    mine = next(one for one in SESSIONS if theirs(new, one) == "1.1.0")
    agent.until_in_force(agent.serve(old))
    assert ask(bench, mine) == "1.0.0"
    agent.route(Route(pipeline=PIPELINE, serving=new, refuge=old, requests=HALF))
    eventually(lambda: ask(bench, mine) == "1.1.0", "the session does not come back")
