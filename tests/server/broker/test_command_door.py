"""The door for commands: whose, for when, for whom, and only once. The store is compared before and after each refusal."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_server import command_door
from holdfast_server.broker import command_desk
from holdfast_server.broker.command_desk import WAITING_MAX, Asked, CommandDesk, answer_topic
from holdfast_shared import selector, signing, strict_json
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, Untrusted
from holdfast_shared.wire.command import ENVELOPE_BYTES_MAX, LIFETIME_MAX_S, TYPE, Command, Rollback, RolloutStart
from support.reporting import eventually, everything
from support.rollout_bench import KEYS, SECOND_US, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish("1.0.0", "1.1.0")
    made.install("1.0.0")
    made.install("1.1.0")
    yield made
    made.database.close()


def payload(bench: Bench, **fields: Any) -> bytes:
    now = bench.now().at
    act = Rollback(pipeline="digits", version="1.1.0", reason="x", segment=selector.parse("region=eu-west"))
    given: dict[str, Any] = {
        "fleet": "test", "id": secrets.token_hex(16), "issued_at": now, "not_after": now + 300 * SECOND_US, "act": act,
    }  # fmt: skip
    return strict_json.encode(Command(**(given | fields)))


def signed(body: bytes, *signers: str) -> bytes:
    return signing.sign(body, TYPE, [KEYS[name] for name in signers or ("ann", "cid")])


def test_a_good_command_acts_and_is_told_as_the_api_shows_it(bench: Bench) -> None:
    done = command_door.accept(bench, signed(payload(bench)), verb="rollback")
    assert done == bench.rollback(done["id"])
    assert done["state"] == "accepted"


def test_of_many_deliveries_at_once_one_acts(bench: Bench) -> None:
    envelope, results = signed(payload(bench)), []

    def deliver() -> None:
        try:
            results.append(command_door.accept(bench, envelope)["state"])
        except Conflict as refusal:
            results.append(refusal.code)

    threads = [threading.Thread(target=deliver) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(results) == ["accepted"] + ["already-done"] * 7
    assert len(everything(bench.database)["rollbacks"]) == 1


def test_a_refused_command_may_come_again_once_it_can_be_done(bench: Bench) -> None:
    """A refusal takes nothing, the id neither."""
    start = payload(bench, act=RolloutStart(rollout="r-none"))
    for _ in range(2):
        with pytest.raises(Missing):
            command_door.accept(bench, signed(start))


def test_ids_are_kept_past_their_end_and_then_forgotten(bench: Bench) -> None:
    command_door.accept(bench, signed(payload(bench)))
    bench.clock.passes(3600)
    region = selector.parse("region=us-east")
    act = Rollback(pipeline="digits", version="1.1.0", reason="x", segment=region)
    command_door.accept(bench, signed(payload(bench, act=act)))
    assert len(everything(bench.database)["commands_seen"]) == 2
    bench.clock.passes(2 * 86_400)
    region = selector.parse("region=ap-south")
    act = Rollback(pipeline="digits", version="1.1.0", reason="x", segment=region)
    command_door.accept(bench, signed(payload(bench, act=act)))
    assert len(everything(bench.database)["commands_seen"]) == 1


def test_small_differences_of_clocks_are_borne(bench: Bench) -> None:
    now = bench.now().at
    ahead = {"issued_at": now + 50 * SECOND_US, "not_after": now + 100 * SECOND_US}
    assert command_door.accept(bench, signed(payload(bench, **ahead)))["state"] == "accepted"


def _at(issued_s: float, ended_s: float) -> Callable[[Bench], bytes]:
    return lambda b: signed(
        payload(b, issued_at=b.now().at + int(issued_s * SECOND_US), not_after=b.now().at + int(ended_s * SECOND_US))
    )


REFUSED: dict[str, tuple[Callable[[Bench], bytes], type[HoldfastError], str]] = {
    "empty": (lambda _: b"", Malformed, ""),
    "oversized": (lambda _: b" " * (ENVELOPE_BYTES_MAX + 1), Malformed, ""),
    "not an envelope": (payload, Malformed, ""),
    "another document's type": (
        lambda b: signing.sign(payload(b), "holdfast.report/1", [KEYS["ann"]]), Malformed, "payloadType",
    ),
    "a stranger's": (lambda b: signed(payload(b), "eve"), Untrusted, "signatures"),
    "an approver's alone": (lambda b: signed(payload(b), "cid"), Untrusted, "signatures"),
    "truncated": (lambda b: signed(payload(b)[:-5]), Malformed, ""),
    "NaN": (lambda b: signed(payload(b).replace(b'"issued_at":', b'"issued_at":NaN,"x":')), Malformed, ""),
    "a key twice": (lambda b: signed(payload(b).replace(b'"fleet":', b'"fleet":"test","fleet":', 1)), Malformed, "fleet"),
    "an unknown field": (lambda b: signed(payload(b).replace(b'"reason":', b'"raeson":')), Malformed, "act"),
    "another fleet": (lambda b: signed(payload(b, fleet="other")), Untrusted, "fleet"),
    "from the future": (_at(120, 300), Untrusted, "issued_at"),
    "expired": (_at(-500, -90), Untrusted, "not_after"),
    "valid for too long": (_at(0, LIFETIME_MAX_S + 1), Malformed, "not_after"),
    "ended before it began": (_at(0, -1), Malformed, "not_after"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_next_step_and_changes_nothing(bench: Bench, name: str) -> None:
    make, error, field = REFUSED[name]
    before = everything(bench.database)
    with pytest.raises(error) as refused:
        command_door.accept(bench, make(bench), verb="rollback")
    assert refused.value.next_step
    assert refused.value.field == field
    assert everything(bench.database) == before


def test_what_is_signed_must_be_what_the_topic_says(bench: Bench) -> None:
    before = everything(bench.database)
    with pytest.raises(Malformed) as refused:
        command_door.accept(bench, signed(payload(bench)), verb="approve")
    assert refused.value.field == "act.verb"
    assert everything(bench.database) == before


def test_one_command_too_many_is_told_so_at_once(bench: Bench) -> None:
    desk = CommandDesk(bench)  # nobody empties it
    answers: list[bytes] = []
    done: list[str] = []
    for _ in range(WAITING_MAX):
        desk.offer(Asked("rollback", b"", answers.append, lambda: done.append("one that waits")))
    desk.offer(Asked("rollback", b"", answers.append, lambda: done.append("the last")))
    assert [b"limit-reached" in answer for answer in answers] == [True]
    assert done == ["the last"]


def test_a_flood_of_commands_that_nobody_signed_is_one_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them is answered all the same."""
    desk, stop = CommandDesk(bench), threading.Event()
    answers: list[bytes] = []
    thread = threading.Thread(target=desk.run, args=(stop,))
    thread.start()
    for _ in range(40):
        desk.offer(Asked("rollback", b"?", answers.append, None))
    eventually(lambda: len(answers) == 40)
    stop.set()
    thread.join(10)
    assert len([line for line in caplog.messages if "rollback" in line]) == 1


def test_a_large_answer_is_told_without_its_lists() -> None:
    done = {"id": "b-1", "devices": [{"device": f"device-{n}", "back_at_monotonic_us": None} for n in range(20_000)]}
    assert command_desk.success(done) == b'{"id":"b-1","ok":true}'


@pytest.mark.parametrize(
    "topic",
    [
        None, "", "holdfast/test/answer/", "holdfast/other/answer/me", "holdfast/test/answer/+", "holdfast/test/answer/#",
        "holdfast/test/region/eu-west/assignment/digits", "holdfast/test/answer/" + "x" * 300,
    ],
)  # fmt: skip
def test_answers_go_only_where_answers_are_expected(topic: str | None) -> None:
    assert answer_topic("test", topic) is None
    assert answer_topic("test", "holdfast/test/answer/me") == "holdfast/test/answer/me"
