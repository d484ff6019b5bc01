"""Changes as server-sent events: told after the commit, few streams at once, all ended when the server stops."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import urllib3

from holdfast_server.api import events
from support.reporting import eventually
from support.running_server import Running, membership

WAIT_S = 20.0


class Stream:
    """An open page."""

    def __init__(self, server: Running) -> None:
        self._pool = urllib3.PoolManager(retries=False, timeout=WAIT_S)
        self.response = self._pool.request("GET", f"{server.client.address}/api/v1/events", preload_content=False)
        self._lines: Iterator[bytes] = iter(self.response)

    def next(self, beginning: str) -> str:
        """The rest of the next line that begins so; empty when the stream has ended."""
        for line in self._lines:
            text = line.decode().rstrip("\n")
            if text.startswith(beginning):
                return text.removeprefix(beginning).strip()
        return ""

    def close(self) -> None:
        self.response.close()
        self._pool.clear()


def test_a_change_is_told_to_every_open_page(server: Running) -> None:
    pages = [Stream(server), Stream(server)]
    for page in pages:
        assert page.response.headers["Content-Type"].startswith("text/event-stream")
        assert page.next(": ") == "here"
    server.client.ask("POST", "memberships", membership("dev-1"))
    for page in pages:
        assert page.next("event:") == "change"
        assert json.loads(page.next("data:")) == {"topics": ["fleet"]}
        page.close()


def test_a_quiet_stream_is_kept_alive(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.0)
    page = Stream(server)
    assert [page.next(": "), page.next(": ")] == ["here", "still here"]
    page.close()


def test_one_stream_too_many_is_refused_and_a_closed_one_makes_room(server: Running) -> None:
    pages = [Stream(server) for _ in range(events.STREAMS_MAX)]
    for page in pages:
        assert page.next(": ") == "here"
    refused = server.client.get("events")
    assert (refused.status, refused.error["code"]) == (429, "limit-reached")
    assert server.client.get("status").status == 200
    pages.pop().close()

    def there_is_room() -> bool:
        page = Stream(server)
        found = page.response.status == 200
        page.close()
        return found

    eventually(there_is_room)
    for page in pages:
        page.close()


def test_streams_end_when_the_server_stops(server: Running) -> None:
    page = Stream(server)
    assert page.next(": ") == "here"
    server.stopping.set()
    assert page.next("event:") == ""
    page.close()
