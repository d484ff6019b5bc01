"""The outbox: what is not known to have reached somebody stays on disk, and goes again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.edge.outbox import UNDER_WAY_MAX, Outbox
from holdfast_agent.edge.spool import Spool
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.report import Report


class Wire:
    """Takes whatever is published, and remembers its numbers."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.bytes = 0

    def publish(self, topic: str, payload: bytes, token: int) -> bool:
        assert topic == "holdfast/acme/device/camera-7/health"
        self.published.append(token)
        self.bytes += len(payload)
        return True


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool.db", 100)
    yield opened
    opened.close()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def outbox(spool: Spool, wire: Wire) -> Outbox:
    made = Outbox(spool, wire, fleet="acme", device="camera-7", key=PrivateKey.generate())
    made.connected()
    return made


def report(number: int) -> Report:
    return Report(
        fleet="acme", device="camera-7", incarnation="0" * 16, number=number, kind="health", sent_at=0,
        sent_monotonic_us=0, boot="b", membership_counter=1, agent_version="0.1.0",
    )  # fmt: skip


def test_what_is_sent_is_forgotten(outbox: Outbox, spool: Spool, wire: Wire) -> None:
    outbox.put(report(1))
    outbox.sent(1)
    assert (wire.published, spool.count()) == ([1], 0)


def test_what_nobody_heard_stays_and_goes_again_with_the_next_report(outbox: Outbox, spool: Spool, wire: Wire) -> None:
    outbox.put(report(1))
    outbox.unheard(1)
    assert (wire.published, spool.count()) == ([1], 1), "not at once: nobody may be there for hours"
    outbox.put(report(2))
    assert wire.published == [1, 1, 2]
    outbox.sent(1)
    outbox.sent(2)
    assert spool.count() == 0


def test_a_new_connection_sends_what_was_under_way_again(outbox: Outbox, wire: Wire) -> None:
    outbox.put(report(1))
    outbox.gone()
    outbox.put(report(2))
    assert wire.published == [1]
    outbox.connected()
    assert wire.published == [1, 1, 2]


def test_a_bounded_number_is_under_way(outbox: Outbox, wire: Wire) -> None:
    for number in range(1, UNDER_WAY_MAX + 5):
        outbox.put(report(number))
    assert wire.published == list(range(1, UNDER_WAY_MAX + 1))
    outbox.sent(1)
    assert wire.published[-1] == UNDER_WAY_MAX + 1
