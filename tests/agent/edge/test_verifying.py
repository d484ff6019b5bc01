"""Reading every slot again, from a real disk: what it says, that it is slow on purpose, and that it ends when it is told to."""

from __future__ import annotations

import errno
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent.core.events import SlotsVerified
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.verifying import SlotVerifier
from support import descriptors
from support.published import publish

ONE, TWO = publish("1.0.0"), publish("1.1.0")
WITHIN_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    for release in (ONE, TWO):
        release.install(made)
    return made


def read(verifier: SlotVerifier, said: queue.SimpleQueue[SlotsVerified]) -> SlotsVerified:
    verifier.start({ONE.digest, TWO.digest})
    found = said.get(timeout=WITHIN_S)
    verifier.stop()
    return found


def test_one_flipped_bit_is_found_and_the_other_release_is_whole(folder: StateFolder) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    path = folder.blob(ONE.weights)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    found = read(SlotVerifier(folder, said.put), said)
    assert found.whole == {TWO.digest}
    assert found.damaged == {ONE.digest}
    assert 0 <= found.draw < 1
    path.write_bytes(raw)
    assert read(SlotVerifier(folder, said.put), said).damaged == frozenset()


def test_a_manifest_that_is_gone_is_damage(folder: StateFolder) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    folder.manifest(TWO.model_digest).unlink()
    assert read(SlotVerifier(folder, said.put), said).damaged == {TWO.digest}


def test_it_asks_the_disk_and_not_the_pages_that_the_kernel_still_has(folder: StateFolder) -> None:
    """By the kernel's own count of what this process had from storage: pages in memory say nothing about the disk below."""
    path = folder.blob(ONE.weights)
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # else its pages could not be let go of
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = from_storage_bytes()
        stream.read()
        if from_storage_bytes() - before < size_bytes:
            pytest.skip("the temporary folder lies in memory, where there is no disk to ask")
    before = from_storage_bytes()
    path.read_bytes()
    assert from_storage_bytes() == before, "from here on the kernel has all of it"
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    assert read(SlotVerifier(folder, said.put), said).damaged == frozenset()
    assert from_storage_bytes() - before >= size_bytes


def from_storage_bytes() -> int:
    """proc(5), `read_bytes`."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes:")))


def test_it_reads_no_faster_than_it_may(folder: StateFolder) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    size_bytes = folder.blob(ONE.weights).stat().st_size + folder.blob(TWO.weights).stat().st_size
    began = time.monotonic()
    read(SlotVerifier(folder, said.put, read_bytes_per_s=size_bytes / 1.5), said)
    assert time.monotonic() - began >= 1.5


def test_one_that_is_stopped_says_nothing(folder: StateFolder) -> None:
    """And ends at once, though it had hours to go; a second start meanwhile begins no second reading."""
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    verifier = SlotVerifier(folder, said.put, read_bytes_per_s=0.01)
    verifier.start({ONE.digest})
    verifier.start({TWO.digest})
    began = time.monotonic()
    verifier.stop()
    assert time.monotonic() - began < WITHIN_S / 10
    assert said.empty()


@pytest.fixture
def no_descriptor() -> Iterator[Callable[[], None]]:
    with descriptors.none_left() as again:
        yield again


def test_a_system_without_a_free_descriptor_says_nothing_about_the_bytes(
    folder: StateFolder, no_descriptor: Callable[[], None]
) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    found = read(SlotVerifier(folder, said.put, again_s=0.0), said)
    no_descriptor()
    assert (found.whole, found.damaged) == (frozenset(), frozenset())
    assert found.unreadable == dict.fromkeys((ONE.digest, TWO.digest), os.strerror(errno.EMFILE))


def test_what_could_not_be_read_is_tried_again_before_it_is_told(
    folder: StateFolder, no_descriptor: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    verifier = SlotVerifier(folder, said.put, again_s=0.2)
    verifier.start({ONE.digest})
    deadline = time.monotonic() + WITHIN_S
    while "try 1 of" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    no_descriptor()
    assert said.get(timeout=WITHIN_S).whole == {ONE.digest}
    verifier.stop()


def test_a_start_while_somebody_reads_begins_no_second_reading(folder: StateFolder) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    size_bytes = folder.blob(ONE.weights).stat().st_size
    verifier = SlotVerifier(folder, said.put, read_bytes_per_s=size_bytes / 0.5)
    verifier.start({ONE.digest})
    verifier.start({TWO.digest})
    assert verifier._thread is not None
    verifier._thread.join(WITHIN_S)
    assert said.get(timeout=WITHIN_S).whole == {ONE.digest}
    assert said.empty()
    verifier.stop()


def test_a_short_file_is_damage(folder: StateFolder) -> None:
    said: queue.SimpleQueue[SlotsVerified] = queue.SimpleQueue()
    path = folder.blob(ONE.weights)
    path.write_bytes(path.read_bytes()[:-1])
    assert read(SlotVerifier(folder, said.put), said).damaged == {ONE.digest}
