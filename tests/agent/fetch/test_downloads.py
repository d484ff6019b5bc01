"""What may happen to a blob on its way: broken off, lied about, changed, slowed down; what came is kept and never trusted."""

from __future__ import annotations

import pytest

from holdfast_agent.fetch import blob, patience
from support.fetch_bench import ETAG, GOOD, PORTAL, WAYS_PATH, WEIGHTS, WEIGHTS_PATH, Bench, begun, ranges
from support.hostile_server import (
    Behaviour,
    cut,
    endless,
    head,
    honest,
    silent,
    status,
    trickle,
)


def test_a_body_that_breaks_off_is_resumed_at_once(bench: Bench) -> None:
    bench.server.on(WEIGHTS_PATH, cut(WEIGHTS, 100_000, ETAG), cut(WEIGHTS, 100_000, ETAG), honest(WEIGHTS, ETAG))
    assert bench.fetch().ok
    assert ranges(bench) == ["", "bytes=100000-", "bytes=200000-"]
    assert bench.server.asked(WEIGHTS_PATH)[1].headers["if-range"] == ETAG


def test_what_came_is_kept_for_the_next_time(bench: Bench) -> None:
    bench.server.on(WEIGHTS_PATH, cut(WEIGHTS, 100_000, ETAG), status(500))
    assert bench.fetch().code == "fetch-refused"
    bench.serve(GOOD)
    bench.server.requests.clear()
    assert bench.fetch().ok
    assert [asked.path for asked in bench.server.requests] == [WAYS_PATH, WEIGHTS_PATH], "manifests were kept too"
    assert ranges(bench)[0] == "bytes=100000-"


def test_a_server_that_breaks_off_for_ever_is_given_up(bench: Bench) -> None:
    bench.server.on(WEIGHTS_PATH, cut(WEIGHTS, 1))
    assert bench.fetch().code == "fetch-unreachable"
    assert len(ranges(bench)) <= blob.RESUMES_MAX + 1
    bench.server.on(WEIGHTS_PATH, cut(WEIGHTS, 0))
    bench.server.requests.clear()
    assert bench.fetch().code == "fetch-unreachable"
    assert len(ranges(bench)) == 1, "an answer that brings nothing is not asked again at once"


@pytest.mark.parametrize("etag", [ETAG, "", "W/no etag at all"])
def test_a_partial_file_is_resumed_with_and_without_an_etag(bench: Bench, etag: str) -> None:
    begun(bench, WEIGHTS[:12345], etag)
    assert bench.fetch().ok
    assert ranges(bench) == ["bytes=12345-"]


def test_a_complete_partial_file_only_needs_its_name(bench: Bench) -> None:
    begun(bench, WEIGHTS)
    assert bench.fetch().ok
    assert ranges(bench) == []


@pytest.mark.parametrize(
    "content", [b"\0" * 1000, WEIGHTS + b"more", b"\0" * len(WEIGHTS), WEIGHTS[:1000] + b"\0" * 500]
)
def test_a_spoilt_partial_file_costs_one_more_download_and_no_more(bench: Bench, content: bytes) -> None:
    begun(bench, content)
    assert bench.fetch().ok
    assert len(ranges(bench)) <= 2
    assert ranges(bench)[-1] == ""


def test_a_server_that_ignores_ranges_is_read_past_what_is_here(bench: Bench) -> None:
    begun(bench, WEIGHTS[:100_000])
    bench.server.on(WEIGHTS_PATH, status(200, WEIGHTS))
    assert bench.fetch().ok
    assert ranges(bench) == ["bytes=100000-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_nothing(bench: Bench) -> None:
    begun(bench, b"\1" * 100_000, etag='"older"')
    assert bench.fetch().ok
    assert ranges(bench)[-1] == ""


def span(start: int, end: int, total: object, content: bytes, **headers: object) -> Behaviour:
    there = f"bytes {start}-{end}/{total}"
    return lambda turn: turn.send(head(206, Content_Length=len(content), Content_Range=there, **headers) + content)


def test_a_part_of_another_file_is_refused_by_its_etag_before_a_byte_of_it_is_kept(bench: Bench) -> None:
    """A server that does not know If-Range sends the rest of what it has now: it is known before it has all come."""
    begun(bench, WEIGHTS[:100_000], etag='"older"')
    rest = WEIGHTS[100_000:]
    changed = span(100_000, len(WEIGHTS) - 1, len(WEIGHTS), rest, ETag='"newer"')
    bench.server.on(WEIGHTS_PATH, changed, honest(WEIGHTS, ETAG))
    assert bench.fetch().ok
    assert ranges(bench) == ["bytes=100000-", ""], "though these bytes would have been the right ones"


@pytest.mark.parametrize(
    "lie",
    [
        span(0, len(WEIGHTS) - 1, len(WEIGHTS), WEIGHTS),
        span(99_999, len(WEIGHTS) - 1, len(WEIGHTS), WEIGHTS[99_999:]),
        span(100_000, len(WEIGHTS) + 10, len(WEIGHTS) + 11, WEIGHTS[100_000:] + b"x" * 11),
        span(100_000, len(WEIGHTS) - 1, len(WEIGHTS), WEIGHTS[50_000:-50_000]),
        lambda turn: turn.send(head(206, Content_Length=10) + b"0123456789"),
        lambda turn: turn.send(head(206, Content_Length=10, Content_Range="bytes 1000000000000-x/y") + b"0123456789"),
        status(416),
    ],
    ids=["the whole as a part", "another part", "past the end", "other bytes", "no range", "nonsense", "416"],
)
def test_a_lie_about_a_range_is_found_out_and_the_blob_fetched_from_nothing(bench: Bench, lie: Behaviour) -> None:
    begun(bench, WEIGHTS[:100_000])
    bench.server.on(WEIGHTS_PATH, lie, honest(WEIGHTS))
    assert bench.fetch().ok
    assert ranges(bench) == ["bytes=100000-", ""]


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (status(404), "fetch-refused"),
        (status(307, Location="http://127.0.0.1:1/"), "fetch-refused"),
        (status(206, WEIGHTS, Content_Range="bytes 0-1/2"), "fetch-refused"),
        (status(200, PORTAL), "fetch-damaged"),
        (lambda turn: turn.send(head(200) + b"\0" * len(WEIGHTS)), "fetch-damaged"),
        (lambda turn: turn.send(head(200) + WEIGHTS + b"more"), "fetch-damaged"),
        (endless, "fetch-damaged"),
        (silent, "fetch-too-slow"),
        (trickle(head(200, Content_Length=len(WEIGHTS)) + WEIGHTS, 0.05), "fetch-too-slow"),
    ],
    ids=["404", "redirect", "unasked 206", "portal", "other bytes", "too long", "endless", "silent", "trickle"],
)
def test_whatever_answers_for_a_blob_is_one_stable_code(bench: Bench, behaviour: Behaviour, code: str) -> None:
    bench.server.on(WEIGHTS_PATH, behaviour)
    # Only what is too slow needs the deadline to come; on a busy machine the others need more than two seconds.
    assert bench.fetch(deadline_s=2.0 if code == "fetch-too-slow" else 30.0).code == code
    partial = bench.folder.partial_blob(GOOD.weights)
    assert not partial.exists() or partial.stat().st_size <= len(WEIGHTS), "never more than the manifest says"


def test_a_captive_portal_does_not_destroy_what_came_before(bench: Bench) -> None:
    begun(bench, WEIGHTS[:100_000])
    bench.server.on(WEIGHTS_PATH, status(200, PORTAL), honest(WEIGHTS, ETAG))
    assert bench.fetch().code == "fetch-damaged"
    assert bench.fetch().ok
    assert ranges(bench) == ["bytes=100000-", "bytes=100000-"]


def test_a_body_under_the_floor_is_given_up_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trickle that never falls silent: the minimum throughput ends it, long before the deadline."""
    monkeypatch.setattr(patience, "FLOOR_WINDOW_S", 0.4)
    bench.server.on(WEIGHTS_PATH, trickle(head(200, Content_Length=len(WEIGHTS)) + WEIGHTS, 0.05, piece=20))
    ended = bench.fetch(deadline_s=60)
    assert ended.code == "fetch-too-slow"
    assert "a second are expected" in ended.detail
    assert bench.folder.partial_blob(GOOD.weights).stat().st_size > 0
