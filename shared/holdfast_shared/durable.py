"""All durable file work, device and server alike: nothing else opens a file for writing, renames, links or deletes.

- A file appears whole or not at all: temporary file in the same directory, write, fsync, rename, fsync the directory.
- A doubled file survives a torn write of either half: two files, each with a checksum and a counter; the higher good one counts.
  So the lower one is overwritten where it lies, with one sync, where a new file and its name would take three times as long.
  The higher one must be durable by then: a writer that was killed may have left one that only looks so.
- What is read back to be trusted is verified as bytes, and those bytes are used: a path is never verified and opened again.
- A name that is there may still be lost: whoever made it may have been killed before it was durable. So what is relied on is
  synced again, which costs nothing when there is nothing to write.

Errors of the disk (ENOSPC, EROFS, EIO, EMFILE) come out as OSError; there is then what was there before, or the new, whole.
All of it happens through `calls`, one operation each at which tests cut the power.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from holdfast_shared.errors import Damaged


class Calls(Protocol):
    """What durable work asks of the kernel: the calls of `os` by these names. All raise OSError."""

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int: ...

    def write(self, fd: int, data: memoryview, /) -> int: ...

    def ftruncate(self, fd: int, length: int) -> None: ...

    def fsync(self, fd: int) -> None: ...

    def fdatasync(self, fd: int) -> None: ...

    def close(self, fd: int) -> None: ...

    def rename(self, src: Path, dst: Path) -> None: ...

    def link(self, src: Path, dst: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def mkdir(self, path: Path, mode: int = 0o777) -> None: ...

    def rmdir(self, path: Path) -> None: ...


calls: Calls = os

_MAGIC: Final = b"HFREC1\n"
_HEADER: Final = struct.Struct(">7sxQQ32s")  # magic, padding, counter, length, SHA-256 of counter ‖ body
# A half is so long or a multiple: its length, which is metadata that would have to be synced too, hardly ever changes.
_HALF_BYTES: Final = 4096
# A reader looks again at a half that is wrong while its bytes change: the writer is at it, and that takes microseconds.
_LOOKS_MAX: Final = 5
_LOOK_AGAIN_S: Final = 0.002
_TEMPORARY: Final = ".partial-"


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Create `path` and its parents, durably. May be repeated."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    there = missing[-1].parent if missing else path
    with contextlib.suppress(PermissionError):  # then it was not us who made it
        sync_folder(there.parent)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            calls.mkdir(folder, mode)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_DIRECTORY)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`, whole or not at all. May be repeated."""
    temporary = path.parent / f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}"
    try:
        descriptor = calls.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _write(descriptor, data)
            calls.fsync(descriptor)
        finally:
            calls.close(descriptor)
        calls.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            calls.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_new_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create `path` with `data`, whole or not at all; raises FileExistsError rather than replace what is there."""
    temporary = path.parent / f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}"
    write_file(temporary, data, mode)
    try:
        calls.link(temporary, path)
    finally:
        remove(temporary)  # also makes the new name durable: it is in the same directory


def append_and_sync(path: Path, data: bytes) -> None:
    """Add `data` at the end of a growing partial file, and make it durable: a later reader verifies the whole.

    What fails is taken back: after a failed sync, bytes may be in memory that will never reach the disk.
    """
    descriptor = calls.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        try:
            _write(descriptor, data)
            calls.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                calls.ftruncate(descriptor, before)
            raise
    finally:
        calls.close(descriptor)


def rename_into_place(source: Path, target: Path) -> None:
    """Give a complete file its final name. Its bytes are synced first: whoever wrote them may have been killed before that."""
    _sync(source)
    calls.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove(path: Path) -> None:
    """Delete a file if it is there. May be repeated."""
    try:
        calls.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def move_folder_into_place(source: Path, target: Path) -> None:
    """Give a complete folder, whoever wrote it, its final name: all of it is synced first. `target` must not exist."""
    folders = [source]
    for path in sorted(source.rglob("*")):
        if path.is_symlink():
            continue  # its bytes are its name's, which is its folder's
        if path.is_dir():
            folders.append(path)
        else:
            _sync(path)
    for folder in reversed(folders):
        sync_folder(folder)
    calls.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it, if it is there. It loses its name first: none is ever there in part. May be repeated."""
    gone = path.parent / f"{_TEMPORARY}{path.name.removeprefix(_TEMPORARY)}"
    _empty_renamed(gone)
    if path != gone and path.exists():
        calls.rename(path, gone)
        _empty_renamed(gone)


def _empty_renamed(gone: Path) -> None:
    if gone.exists():
        sync_folder(gone.parent)  # also when another renamed it, and was killed before its sync
        _empty(gone)


def _empty(folder: Path) -> None:
    """It is there; that it has lost its name must be durable."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _empty(entry)
        else:
            calls.unlink(entry)
    calls.rmdir(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders of writers that were killed. Only the folder's one writer may call it."""
    leftovers = list(folder.glob(f"{_TEMPORARY}*"))
    if any(leftover.is_dir() for leftover in leftovers):
        sync_folder(folder)  # one that was renamed for its removal may have its old name on the disk still
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            _empty(leftover)
            continue
        with contextlib.suppress(FileNotFoundError):
            calls.unlink(leftover)


def open_lock(path: Path) -> int:
    """A descriptor of an empty file that exists only to be locked; the caller closes it. Losing the name loses nothing."""
    return calls.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class DoubledFile:
    """`<path>.a` and `<path>.b`: the newest whole one counts, and a write touches only the other.

    One process writes; any number read. `write` returns only when the new content survives a power cut.
    """

    __slots__ = ("_durable", "_failed", "_halves", "_on_damage")

    def __init__(self, path: Path, on_damage: Callable[[str], None] = lambda _: None) -> None:
        self._durable: set[Path] = set()  # halves that are, name and all, because we saw to it
        self._failed: set[Path] = set()  # halves whose sync was refused: what is read of them may never reach the disk
        self._halves = (path.with_name(path.name + ".a"), path.with_name(path.name + ".b"))
        self._on_damage = on_damage

    def read(self) -> tuple[int, bytes] | None:
        """(counter, body) of the newest good half; None when there is none at all. Raises Damaged when both are bad."""
        good, bad = self._halves_read()
        if good:
            return max(good)
        if bad:
            raise Damaged(
                f"no half of {self._halves[0].with_suffix('')} can be read: {'; '.join(bad)}",
                next_step="restore the state directory, or provision the device again",
            )
        return None

    def write(self, body: bytes) -> int:
        """Replace the older half by `body`; the new counter. After an error the other half is what it was."""
        good, _ = self._halves_read()
        newest = max((found for found, _ in good if self._half(found) not in self._failed), default=0)
        if newest and self._half(newest) not in self._durable:
            self._make_durable(self._half(newest), spare=len(good) > 1)
        counter = newest + 1
        header = _HEADER.pack(_MAGIC, counter, len(body), _checksum(counter, body))
        data = header + body
        self._write_half(self._half(counter), data + bytes(-len(data) % _HALF_BYTES))
        return counter

    def _make_durable(self, half: Path, *, spare: bool) -> None:
        """A sync that is refused is not asked again: the kernel tells it once, and calls the lost bytes clean from then on.

        With a good half to `spare` this one is written over, and the other, which its writer saw durable, stays.
        """
        try:
            _sync(half)
            sync_folder(half.parent)
        except OSError:
            if spare:
                self._failed.add(half)
            raise
        self._durable.add(half)

    def _half(self, counter: int) -> Path:
        return self._halves[counter % 2]

    def _write_half(self, half: Path, data: bytes) -> None:
        """The first time whole or not at all: there may be no other half yet."""
        named = half in self._durable
        self._durable.discard(half)
        self._failed.add(half)
        if not half.exists():
            write_file(half, data, mode=0o640)
        else:
            _overwrite(half, data)
            if not named:
                sync_folder(half.parent)
        self._failed.discard(half)
        self._durable.add(half)

    def _halves_read(self) -> tuple[list[tuple[int, bytes]], list[str]]:
        good: list[tuple[int, bytes]] = []
        bad: list[str] = []
        for half in self._halves:
            try:
                good.append(_read_half(half))
            except FileNotFoundError:
                continue
            except (Damaged, OSError) as error:
                bad.append(f"{half.name}: {error}")
                self._on_damage(bad[-1])
        return good, bad


def _read_half(path: Path) -> tuple[int, bytes]:
    """Raises Damaged, once the bytes are wrong and stay as they are, and OSError."""
    raw = path.read_bytes()
    for _ in range(_LOOKS_MAX):
        try:
            return _decode_half(raw)
        except Damaged:
            time.sleep(_LOOK_AGAIN_S)  # for the writer of another process, which tells nobody when it is done
            before, raw = raw, path.read_bytes()
            if raw == before:
                raise
    return _decode_half(raw)


def _decode_half(raw: bytes) -> tuple[int, bytes]:
    if len(raw) < _HEADER.size:
        raise Damaged(f"{len(raw)} bytes are less than a header")
    magic, counter, length, checksum = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size : _HEADER.size + length]  # what follows is padding, or of a longer one before
    if magic != _MAGIC or length != len(body) or checksum != _checksum(counter, body):
        raise Damaged("the checksum does not match")
    return counter, body


def _checksum(counter: int, body: bytes) -> bytes:
    return hashlib.sha256(counter.to_bytes(8, "big") + body).digest()


def _overwrite(path: Path, data: bytes) -> None:
    """Write over the beginning of a file that is there. A power cut may tear it; an error voids it, if that can be done."""
    descriptor = calls.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        try:
            _write(descriptor, data)
            calls.fdatasync(descriptor)  # for a time stamp alone fsync would wait for the journal
        except OSError:
            _void(descriptor)
            raise
    finally:
        calls.close(descriptor)


def _void(descriptor: int) -> None:
    """Nothing is to be read of it. It keeps its room: on a full disk, what is given back is somebody else's at once."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        _write(descriptor, bytes(_HEADER.size))
    except OSError:
        with contextlib.suppress(OSError):
            calls.ftruncate(descriptor, 0)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[calls.write(descriptor, view) :]


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = calls.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        calls.fsync(descriptor)
    finally:
        calls.close(descriptor)
