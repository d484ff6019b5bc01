"""Files appear whole or not at all, and a doubled file survives the loss of either half at any byte."""

from __future__ import annotations

import errno
import os
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
    assert b"newer" in whole
    damages = [whole[:length] for length in range(len(whole))]
    damages += [
        whole[:i] + bytes([whole[i] ^ 0x40]) + whole[i + 1 :] for i in range(len(whole)) if i != 7
    ]  # byte 7 is padding
    for damage in damages:
        newest.write_bytes(damage)
        told: list[str] = []
        assert DoubledFile(tmp_path / "record", told.append).read() == (1, b"older")
        assert len(told) == 1


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
