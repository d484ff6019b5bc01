"""Files appear whole or not at all, and a doubled file survives the loss of either half at any byte."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast_shared import durable
from holdfast_shared.durable import DoubledFile
from holdfast_shared.errors import Damaged


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    durable.write_file(target, b"one")
    durable.write_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """ENOSPC at either call: the old content stays, and no temporary file does."""
    target = tmp_path / "file"
    durable.write_file(target, b"old")

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(OSError, match="No space"):
        durable.write_file(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_doubled_file_gives_the_newest(tmp_path: Path) -> None:
    doubled = DoubledFile(tmp_path / "record")
    assert doubled.read() is None
    for number in range(5):
        doubled.write(b"body %d" % number)
        assert DoubledFile(tmp_path / "record").read() == (number + 1, b"body %d" % number)


def test_a_torn_half_gives_the_other(tmp_path: Path) -> None:
    """The newest half cut at every length, or with any one byte flipped: the one before is read, and damage is told."""
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"older")
    doubled.write(b"newer")
    newest = tmp_path / "record.a"
    whole = newest.read_bytes()
    told_of = whole.index(b"newer") + len(b"newer")  # what follows is padding
    damages = [whole[:length] for length in range(told_of)]
    damages += [
        whole[:i] + bytes([whole[i] ^ 0x40]) + whole[i + 1 :] for i in range(told_of) if i != 7
    ]  # byte 7 is padding
    for damage in damages:
        newest.write_bytes(damage)
        told: list[str] = []
        assert DoubledFile(tmp_path / "record", told.append).read() == (1, b"older")
        assert len(told) == 1


def test_a_half_may_be_longer_than_what_it_holds(tmp_path: Path) -> None:
    """A short body over a long one, a half that ends with its body as older versions wrote it, and anything behind it."""
    doubled = DoubledFile(tmp_path / "record")
    for body in (b"long" * 5000, b"long" * 5000, b"short", b""):
        counter = doubled.write(body)
        assert DoubledFile(tmp_path / "record").read() == (counter, body)
    doubled.write(b"exact")
    half = tmp_path / "record.a" if b"exact" in (tmp_path / "record.a").read_bytes() else tmp_path / "record.b"
    whole = half.read_bytes()
    half.write_bytes(whole[: whole.index(b"exact") + len(b"exact")])
    assert doubled.read() == (5, b"exact")
    half.write_bytes(whole[: whole.index(b"exact") + len(b"exact")] + b"of a longer one before")
    assert doubled.read() == (5, b"exact")


def test_a_reader_beside_the_writer_finds_no_damage(tmp_path: Path) -> None:
    """A half that is being overwritten is looked at again, not called damaged."""
    writer = DoubledFile(tmp_path / "record")
    writer.write(b"first")
    told: list[str] = []
    over = threading.Event()

    def read() -> None:
        reader, newest = DoubledFile(tmp_path / "record", told.append), 0
        while not over.is_set():
            found = reader.read()
            assert found is not None
            assert found[0] >= newest
            newest = found[0]

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        for number in range(500):
            writer.write(b"%d" % number * (1 + number * 7 % 9000))
        over.set()
        for one in reading:
            one.result(30)
    assert told == []


class Refusing:
    """`os`, but that a sync is refused while `refuses`; `synced` names what was synced."""

    def __init__(self) -> None:
        self.refuses = False
        self.synced: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if self.refuses:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    def fdatasync(self, descriptor: int) -> None:
        self.fsync(descriptor)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    made = Refusing()
    monkeypatch.setattr(durable, "calls", made)
    return made


def test_the_newest_half_is_made_durable_before_the_other_is_written_over(tmp_path: Path, refusing: Refusing) -> None:
    """Its writer may have been killed before its sync: then both halves would hang on what no disk has yet."""
    for number in range(3):
        DoubledFile(tmp_path / "record").write(b"%d" % number)
    newest = "record.b"  # the third
    refusing.synced.clear()
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"next")
    assert refusing.synced[:3] == [newest, tmp_path.name, "record.a"]
    refusing.synced.clear()
    doubled.write(b"and so on")
    assert refusing.synced == ["record.b"]  # once is enough for a process


def test_what_could_not_be_synced_is_not_read(tmp_path: Path, refusing: Refusing) -> None:
    """After a refused sync the kernel gives back bytes that may never reach the disk."""
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"one")
    doubled.write(b"two")
    refusing.refuses = True
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            doubled.write(b"refused")
        assert DoubledFile(tmp_path / "record").read() == (2, b"two")
    refusing.refuses = False
    assert doubled.write(b"three") == 3
    assert DoubledFile(tmp_path / "record").read() == (3, b"three")


class FullDisk(Refusing):
    """A disk without a free block: what a file has it may keep, and what it gives back is somebody else's."""

    def write(self, descriptor: int, data: memoryview) -> int:
        left = os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR)
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[:left])


def test_a_body_that_a_full_disk_cannot_hold_keeps_nobody_from_saving_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a record that grew in vain would keep the device from falling back."""
    doubled = DoubledFile(tmp_path / "record")
    for body in (b"one", b"two"):
        doubled.write(body)
    monkeypatch.setattr(durable, "calls", FullDisk())
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        doubled.write(b"large" * 2000)
    assert DoubledFile(tmp_path / "record").read() == (2, b"two")
    for number in range(3, 7):
        assert doubled.write(b"small") == number
        assert DoubledFile(tmp_path / "record").read() == (number, b"small")


def test_what_could_not_be_synced_is_not_read_where_a_file_cannot_be_cut_short(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, f"{descriptor} {length}")

    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"one")
    doubled.write(b"two")
    monkeypatch.setattr(refusing, "ftruncate", cannot, raising=False)
    refusing.refuses = True
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        doubled.write(b"refused")
    assert DoubledFile(tmp_path / "record").read() == (2, b"two")


def test_a_newest_half_whose_sync_was_refused_once_is_never_relied_on(tmp_path: Path, refusing: Refusing) -> None:
    """The kernel tells a lost page once; asked again it says that all is well. The other half is what the disk has."""
    for body in (b"older", b"a killed writer's"):
        DoubledFile(tmp_path / "record").write(body)
    older = tmp_path / "record.b"  # the first
    kept = older.read_bytes()
    doubled = DoubledFile(tmp_path / "record")
    refusing.refuses = True
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        doubled.write(b"next")
    refusing.refuses = False
    assert doubled.write(b"next") == 2
    assert older.read_bytes() == kept
    assert DoubledFile(tmp_path / "record").read() == (2, b"next")


def test_the_only_good_half_is_never_written_over(tmp_path: Path, refusing: Refusing) -> None:
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"one")
    doubled.write(b"two")
    (tmp_path / "record.b").write_bytes(b"damaged")  # the first
    doubled = DoubledFile(tmp_path / "record")
    kept = (tmp_path / "record.a").read_bytes()
    refusing.refuses = True
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            doubled.write(b"next")
    refusing.refuses = False
    assert doubled.write(b"next") == 3
    assert (tmp_path / "record.a").read_bytes() == kept


def test_a_write_after_damage_heals(tmp_path: Path) -> None:
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"older")
    doubled.write(b"newer")
    (tmp_path / "record.a").write_bytes(b"rot")
    assert doubled.write(b"next") == 2
    assert doubled.read() == (2, b"next")


def test_both_halves_bad_is_said_not_guessed(tmp_path: Path) -> None:
    doubled = DoubledFile(tmp_path / "record")
    doubled.write(b"one")
    doubled.write(b"two")
    for half in ("record.a", "record.b"):
        (tmp_path / half).write_bytes(b"rot")
    with pytest.raises(Damaged, match="provision the device again"):
        doubled.read()


def test_folders_and_removal_may_be_repeated(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a" / "b")
    durable.make_folder(tmp_path / "a" / "b")
    durable.write_file(tmp_path / "a" / "b" / "c", b"")
    durable.remove(tmp_path / "a" / "b" / "c")
    durable.remove(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b").is_dir()


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    (tmp_path / ".partial-file-0011").write_bytes(b"half")
    durable.write_file(tmp_path / "file", b"whole")
    durable.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_appending_keeps_what_was_there(tmp_path: Path) -> None:
    durable.append_and_sync(tmp_path / "part", b"one")
    durable.append_and_sync(tmp_path / "part", b"two")
    durable.rename_into_place(tmp_path / "part", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"onetwo"
