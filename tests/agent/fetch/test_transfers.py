"""A blob may come in another form, which an index offers that nobody signed: it is trusted by what comes of it alone."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import zstandard

from holdfast_agent.fetch import staging, transfers
from holdfast_agent.fetch.transfers import Way
from holdfast_shared import durable, strict_json
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.transfers import Transfer, Transfers
from support.fetch_bench import Bench
from support.hostile_server import Behaviour, cut, honest, silent, status
from support.published import Making, publish

# Compresses to a quarter, and to more than one piece of the tests.
WEIGHTS: Final = bytes(random.Random(7).choices((0, 1, 2, 3), k=400_000))
LARGE: Final = publish("3.0.0", Making(weights=WEIGHTS))
BLOB: Final = f"/api/v1/blobs/{LARGE.weights}"


def compressed(content: bytes = WEIGHTS, *, window_log: int = 20) -> bytes:
    """As whoever does not know the length does it: the frame asks for all of its window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
    making = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return making.compress(content) + making.flush()


SHORT: Final = compressed()


def offer(bench: Bench, content: bytes = SHORT, *behaviours: Behaviour, codec: str = "zstd", size: int = 0) -> str:
    """The path at which the server has `content` as another form of the blob."""
    digest = digest_of(content)
    transfer = Transfer(codec=codec, digest=digest, size_bytes=size or len(content))
    bench.server.on(
        f"{BLOB}/transfers", status(200, strict_json.encode(Transfers(blob=LARGE.weights, transfers=(transfer,))))
    )
    path = f"/api/v1/blobs/{digest}"
    bench.server.on(path, *(behaviours or (honest(content, f'"{digest}"'),)))
    return path


@pytest.fixture
def large(bench: Bench) -> Bench:
    bench.serve(LARGE)
    return bench


def asked(bench: Bench, path: str = BLOB) -> list[str]:
    return [one.headers.get("range", "") for one in bench.server.asked(path)]


def test_the_shorter_form_is_fetched_and_nothing_of_it_stays(large: Bench) -> None:
    path = offer(large)
    assert large.fetch(LARGE).ok
    assert large.folder.blob(LARGE.weights).read_bytes() == WEIGHTS
    assert (asked(large, path), asked(large)) == ([""], [])
    assert list(large.folder.partial.iterdir()) == []


def test_a_form_that_breaks_off_is_resumed_at_once_and_by_the_next_fetch(large: Bench) -> None:
    digest = digest_of(SHORT)
    path = offer(large, SHORT, cut(SHORT, 1_000, f'"{digest}"'), cut(SHORT, 1_000, f'"{digest}"'), status(503))
    assert large.fetch(LARGE).ok, "the plain bytes, in the end"
    assert asked(large, path) == ["", "bytes=1000-", "bytes=2000-"]
    large.folder.manifest(LARGE.digest).unlink()
    large.folder.blob(LARGE.weights).unlink()
    large.folder.partial_transfer(LARGE.weights, "zstd").write_bytes(SHORT[:5_000])
    path = offer(large)
    large.server.requests.clear()
    assert large.fetch(LARGE).ok
    assert (asked(large, path), asked(large)) == (["bytes=5000-"], [])


def test_a_slow_form_is_kept_for_the_next_fetch(large: Bench) -> None:
    digest = digest_of(SHORT)
    path = offer(large, SHORT, cut(SHORT, 5_000, f'"{digest}"'), silent)
    assert large.fetch(LARGE).code == "fetch-too-slow"
    assert large.folder.partial_transfer(LARGE.weights, "zstd").stat().st_size == 5_000
    offer(large)
    assert large.fetch(LARGE).ok
    assert asked(large, path)[-1] == "bytes=5000-"


def test_a_fetch_that_was_killed_while_it_decoded_asks_for_nothing_again(large: Bench) -> None:
    path = offer(large)
    large.folder.partial.mkdir(parents=True)
    large.folder.transfer(LARGE.weights, "zstd").write_bytes(SHORT)
    large.folder.partial_blob(LARGE.weights).write_bytes(WEIGHTS[:100_000])
    assert large.fetch(LARGE).ok
    assert (asked(large, path), asked(large)) == ([], [])


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        SHORT[:-1_000],
        compressed(WEIGHTS + b"more"),
        compressed(WEIGHTS[:-1]),
        compressed(flipped(WEIGHTS, 70_000)),
        flipped(SHORT, len(SHORT) // 2),
        compressed(bytes(16 * 1024**2)),
        compressed(WEIGHTS, window_log=27),
        b"<html>Please accept our terms</html>" * 100,
    ],
    ids=["truncated", "longer", "shorter", "other bytes", "corrupt", "bomb", "window too large", "portal"],
)
def test_a_bad_form_costs_one_download_more_and_is_asked_for_once(large: Bench, content: bytes) -> None:
    path = offer(large, content)
    assert large.fetch(LARGE).ok
    assert large.folder.blob(LARGE.weights).read_bytes() == WEIGHTS
    assert (len(asked(large, path)), asked(large)) == (1, [""])
    assert list(large.folder.partial.iterdir()) == []


@pytest.mark.parametrize(
    "behaviours", [(honest(b"another file" * 50),), (status(404),), (status(302, Location="http://127.0.0.1:1/"),)]
)
def test_a_form_that_is_not_what_the_index_says_is_passed_over(large: Bench, behaviours: tuple[Behaviour, ...]) -> None:
    offer(large, SHORT, *behaviours)
    assert large.fetch(LARGE).ok
    assert asked(large) == [""]


INDEX = Transfers(
    blob=LARGE.weights, transfers=(Transfer(codec="zstd", digest=digest_of(SHORT), size_bytes=len(SHORT)),)
)


@pytest.mark.parametrize(
    "index",
    [
        status(404),
        status(500),
        status(200, b"<html>"),
        status(200, b" " * 100_000),
        status(200, strict_json.encode(INDEX).replace(b"zstd", b"rle9")),
        status(200, strict_json.encode(INDEX).replace(LARGE.weights.encode(), digest_of(b"").encode(), 1)),
        status(200, strict_json.encode(INDEX).replace(str(len(SHORT)).encode(), str(len(WEIGHTS)).encode())),
        cut(strict_json.encode(INDEX), 20),
    ],
    ids=["404", "500", "portal", "endless", "unknown codec", "another blob's", "no shorter", "cut"],
)
def test_without_an_index_that_is_any_good_the_plain_bytes_are_fetched(large: Bench, index: Behaviour) -> None:
    large.server.on(f"{BLOB}/transfers", index)
    assert large.fetch(LARGE).ok
    assert asked(large) == [""]


def test_a_bomb_costs_no_more_disk_than_the_blob(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kB that would become 64 MiB: what is written ends at the blob's size."""
    written = 0
    real = durable.append_and_sync

    def counted(path: Path, data: bytes) -> None:
        nonlocal written
        written += len(data)
        real(path, data)

    bomb = compressed(bytes(64 * 1024**2))
    assert len(bomb) < 10_000
    offer(large, bomb)
    monkeypatch.setattr(durable, "append_and_sync", counted)
    assert large.fetch(LARGE).ok
    small = sum(len(blob) for digest, blob in LARGE.blobs.items() if digest != LARGE.weights)
    assert written <= len(bomb) + 2 * len(WEIGHTS) + small


# Which way, and how much room it takes.


def test_the_fewest_bytes_to_go_decide() -> None:
    plain = Way("sha256:a", 1_000)

    def by(size: int, codec: str = "zstd", there: int = 0) -> Way:
        return plain._replace(
            transfer=Transfer(codec=codec, digest=LARGE.weights, size_bytes=size), transfer_there_bytes=there
        )

    assert transfers.shortest(plain, [by(600), by(500)]).left_bytes == 500
    assert transfers.shortest(plain, [by(600, there=590), by(500)]).left_bytes == 10
    assert transfers.shortest(plain._replace(there_bytes=700), [by(600)]).transfer is None
    assert transfers.shortest(plain, [by(100, "unknown"), by(1_000)]).transfer is None
    assert transfers.shortest(plain, [by(1_000)]).transfer is None


def test_the_room_for_a_blob_beside_what_it_is_made_of_is_asked_for_before(large: Bench) -> None:
    offer(large)
    plain = sum(map(len, LARGE.blobs.values()))
    exact = staging.RESERVE_BYTES + plain + len(SHORT)
    assert large.fetch(LARGE, free=lambda _: staging.RESERVE_BYTES + plain - 1).code == "no-space"
    assert large.fetch(LARGE, free=lambda _: exact).ok
    assert asked(large) == [], "exactly enough is enough"


def test_without_that_room_the_plain_bytes_come(large: Bench) -> None:
    offer(large)
    plain = sum(map(len, LARGE.blobs.values()))
    assert large.fetch(LARGE, free=lambda _: staging.RESERVE_BYTES + plain + len(SHORT) - 1).ok
    assert asked(large) == [""]


@pytest.mark.slow
def test_a_decoder_holds_little_memory_whatever_comes() -> None:
    """A frame may ask for a window of 128 MiB, and become 256 MiB: neither is ever held."""
    script = """
import io, resource, sys
from holdfast_agent.fetch.codecs import CODECS, Undecodable
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for _ in CODECS["zstd"].decoded(io.BytesIO(sys.stdin.buffer.read()), 1024**2):
        pass
except Undecodable:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for log in (23, 27):
        frame = compressed(bytes(256 * 1024**2), window_log=log)
        grown = subprocess.run([sys.executable, "-c", script], input=frame, capture_output=True, check=True).stdout
        assert int(grown) * 1024 < 32 * 1024**2
