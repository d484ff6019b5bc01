"""Compressed forms of blobs: made where they save something, remembered where not, and never a thing that anybody depends on."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zstandard
from sqlalchemy import insert

from holdfast_server.context import Context
from holdfast_server.registry import transfers
from holdfast_server.registry.transfers import TransferBuilder
from holdfast_server.store.schema import release_blobs
from holdfast_shared import strict_json
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.transfers import SIZE_BYTES_MAX, WINDOW_LOG_MAX, Transfers
from support.running_server import Running, database_url, running_server, server_context

FEW_VALUES: Final = bytes(random.Random(1).choices((0, 1, 2, 3), k=300_000))
RANDOM: Final = random.Random(2).randbytes(300_000)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with database_url("sqlite", tmp_path, None) as url, server_context(url, tmp_path) as made:
        yield made


def registered(context: Context, content: bytes) -> str:
    """The digest of a blob that a registered release names."""
    digest, blobs = digest_of(content), context.registry.blobs
    blobs.keep(blobs.receive(digest, len(content), [content]), digest)
    with context.database.write() as connection:
        connection.execute(
            insert(release_blobs).values(release_digest=digest, blob_digest=digest, size_bytes=len(content))
        )
    return digest


def built(context: Context) -> int:
    return TransferBuilder(context.database, context.registry.blobs).build_missing()


def index_of(context: Context, digest: str) -> Transfers:
    with context.database.read() as connection:
        return transfers.index_of(connection, context.registry.blobs, digest)


def test_a_blob_that_can_be_shorter_is_compressed_once_and_kept_by_its_own_digest(context: Context) -> None:
    digest = registered(context, FEW_VALUES)
    assert index_of(context, digest).transfers == ()
    assert (built(context), built(context)) == (1, 0)
    (made,) = index_of(context, digest).transfers
    content = context.registry.blobs.path_of(made.digest).read_bytes()
    assert (made.codec, made.size_bytes, made.digest) == ("zstd", len(content), digest_of(content))
    assert len(content) < len(FEW_VALUES) / 2
    assert zstandard.decompress(content) == FEW_VALUES
    assert zstandard.get_frame_parameters(content).window_size <= 1 << WINDOW_LOG_MAX


def test_a_window_is_never_larger_than_a_device_holds(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the level asks for: a small limit shows it on a small blob."""
    monkeypatch.setattr(transfers, "WINDOW_LOG_MAX", 17)
    digest = registered(context, FEW_VALUES)
    built(context)
    (made,) = index_of(context, digest).transfers
    assert (
        zstandard.get_frame_parameters(context.registry.blobs.path_of(made.digest).read_bytes()).window_size <= 1 << 17
    )


@pytest.mark.parametrize(
    "content",
    [RANDOM, RANDOM[:280_000] + bytes(8_000), FEW_VALUES[:4_000]],
    ids=["random", "saves too little", "too small"],
)
def test_what_is_not_worth_it_stays_as_it_is_and_is_not_tried_again(context: Context, content: bytes) -> None:
    digest = registered(context, content)
    assert built(context) <= 1
    assert built(context) == 0
    assert index_of(context, digest).transfers == ()
    assert list(context.registry.blobs.digests()) == [digest]


def test_a_blob_that_rotted_or_is_gone_gets_none_and_stops_nobody(context: Context) -> None:
    rotten, gone = registered(context, FEW_VALUES), registered(context, FEW_VALUES[1:])
    context.registry.blobs.path_of(rotten).write_bytes(FEW_VALUES[:-1] + b"\7")
    context.registry.blobs.remove(gone)
    good = registered(context, FEW_VALUES[2:])
    assert built(context) == 3
    assert [len(index_of(context, digest).transfers) for digest in (rotten, gone, good)] == [0, 0, 1]


def test_a_form_whose_bytes_are_lost_is_not_offered(context: Context) -> None:
    digest = registered(context, FEW_VALUES)
    built(context)
    context.registry.blobs.remove(index_of(context, digest).transfers[0].digest)
    assert index_of(context, digest).transfers == ()


def test_a_server_that_ends_leaves_the_rest_for_the_next(context: Context) -> None:
    registered(context, FEW_VALUES)
    stop = threading.Event()
    stop.set()
    TransferBuilder(context.database, context.registry.blobs).build_missing(stop)
    assert built(context) == 1


@pytest.fixture
def server(context: Context, tmp_path: Path) -> Iterator[Running]:
    with running_server(context, tmp_path) as running:
        yield running


def test_the_index_is_asked_for_beside_the_blob(server: Running) -> None:
    digest = registered(server.context, FEW_VALUES)
    path = f"blobs/{digest}/transfers"
    assert server.client.get(path).json == {"type": "holdfast.transfers/1", "blob": digest, "transfers": []}
    built(server.context)
    answer = server.client.get(path)
    index = strict_json.decode(answer.data, Transfers, what="index", size_bytes_max=SIZE_BYTES_MAX)
    assert server.client.get(f"blobs/{index.transfers[0].digest}").status == 200
    assert server.client.get("blobs/sha256:1/transfers").error["field"] == "digest"
    assert server.client.get(f"blobs/{digest_of(b'')}/transfers").status == 404
