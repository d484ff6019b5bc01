"""Reports on their way out: signed, on disk, published while there is a broker, forgotten once it has acknowledged them."""

from __future__ import annotations

from typing import Final, Protocol

from holdfast_agent.edge.spool import Spooled
from holdfast_shared import signing, strict_json, topics
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.report import TYPE, Report

# Under way at once. A broker that answers slowly must not make us resend a whole day after each lost connection.
UNDER_WAY_MAX: Final = 16


class Store(Protocol):
    """Where reports wait: `spool.Spool`."""

    def put(self, number: int, kind: str, envelope: bytes) -> None: ...

    def oldest(self, limit: int) -> list[Spooled]: ...

    def acknowledge(self, number: int) -> None: ...


class Publisher(Protocol):
    """What sends: `broker.BrokerSession`. False: not now."""

    def publish(self, topic: str, payload: bytes, token: int) -> bool: ...


class Outbox:
    """Used by the loop's thread alone. A report's number is its token at the broker."""

    def __init__(self, store: Store, publisher: Publisher, *, fleet: str, device: str, key: PrivateKey) -> None:
        self._store, self._publisher, self._key = store, publisher, key
        self._topics = {"health": topics.health(fleet, device), "event": topics.event(fleet, device)}
        self._connected = False
        self._under_way: set[int] = set()

    def put(self, report: Report) -> None:
        """Sign and keep the report; it is on disk when this returns. Raises OSError when the disk refuses."""
        self._store.put(report.number, report.kind, signing.sign(strict_json.encode(report), TYPE, [self._key]))
        self._publish()

    def connected(self) -> None:
        """A new connection: whatever was under way on the last one is sent again."""
        self._connected = True
        self._under_way.clear()
        self._publish()

    def gone(self) -> None:
        self._connected = False
        self._under_way.clear()

    def sent(self, number: int) -> None:
        """The broker has it. Raises OSError when it cannot be forgotten: then it is sent twice, which harms nobody."""
        self._under_way.discard(number)
        self._store.acknowledge(number)
        self._publish()

    def unheard(self, number: int) -> None:
        """Nobody listens at the broker: the report stays, and goes again with the next one that is put."""
        self._under_way.discard(number)

    def _publish(self) -> None:
        if not self._connected or len(self._under_way) >= UNDER_WAY_MAX:
            return
        for one in self._store.oldest(UNDER_WAY_MAX):
            if one.number in self._under_way:
                continue
            if not self._publisher.publish(self._topics[one.kind], one.envelope, one.number):
                return
            self._under_way.add(one.number)
