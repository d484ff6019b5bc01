"""Our end of a worker's socket: every byte in its order, however slowly the peer reads, and one word when it is gone."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable

import pytest

from holdfast_gateway.stream_end import StreamEnd

WITHIN_S = 20.0


class Reader:
    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(1000))
        self.found = b""
        self.hung_ups = 0
        self.over = asyncio.Event()

    def room(self) -> memoryview:
        return self.buffer

    def filled(self, count: int) -> None:
        self.found += self.buffer[:count]

    def hung_up(self) -> None:
        self.hung_ups += 1
        self.over.set()


def run(scenario: Callable[[StreamEnd, socket.socket, Reader], Awaitable[None]]) -> None:
    async def with_a_pair() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        reader = Reader()
        end = StreamEnd(asyncio.get_running_loop(), ours, reader)
        try:
            await scenario(end, theirs, reader)
        finally:
            end.close()
            theirs.close()

    asyncio.run(with_a_pair())


@pytest.mark.parametrize("seed", range(5))
def test_all_that_is_written_comes_in_its_order(seed: int) -> None:
    chance = random.Random(seed)
    writes = [
        tuple(
            chance.randbytes(chance.choice((0, 1, 30, 5_000, 300_000, 2_000_000))) for _ in range(chance.randint(1, 3))
        )
        for _ in range(12)
    ]
    sent = b"".join(part for parts in writes for part in parts)

    async def scenario(end: StreamEnd, peer: socket.socket, reader: Reader) -> None:
        loop, found, written = asyncio.get_running_loop(), bytearray(), 0
        for parts in writes:
            end.write(*parts)
            written += sum(map(len, parts))
            if chance.random() < 0.5 and len(found) < written:
                found += await loop.sock_recv(peer, chance.randint(1, 400_000))
        async with asyncio.timeout(WITHIN_S):
            while len(found) < len(sent):
                found += await loop.sock_recv(peer, chance.randint(1, 400_000))
        assert found == sent
        end.write(b"small again")
        assert await loop.sock_recv(peer, 100) == b"small again"
        assert reader.hung_ups == 0

    run(scenario)


def test_a_peer_that_goes_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """While nothing is unsent, and while much is; writing to it afterwards is no error."""

    async def scenario(end: StreamEnd, peer: socket.socket, reader: Reader) -> None:
        peer.sendall(b"last words")
        end.write(bytes(4_000_000))
        peer.close()
        end.write(b"more")
        await asyncio.wait_for(reader.over.wait(), WITHIN_S)
        end.write(b"and more")
        end.close()
        await asyncio.sleep(0)
        assert (reader.found, reader.hung_ups) == (b"last words", 1)

    run(scenario)
    assert not caplog.records


def test_closed_by_us_it_is_told_once_too() -> None:
    async def scenario(end: StreamEnd, peer: socket.socket, reader: Reader) -> None:
        end.write(bytes(4_000_000))
        end.close()
        end.close()
        await asyncio.wait_for(reader.over.wait(), WITHIN_S)
        await asyncio.sleep(0)
        assert reader.hung_ups == 1
        async with asyncio.timeout(WITHIN_S):
            while await asyncio.get_running_loop().sock_recv(peer, 1 << 20):  # what had left, and then the end
                pass

    run(scenario)
