"""All durable file work, device and server alike: nothing else opens a file for writing, renames, links or deletes.

- A file appears whole or not at all: temporary file in the same directory, write, fsync, rename, fsync the directory.
- A doubled file survives a torn write of either half: two files, each with a checksum and a counter; the higher good one counts.
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

    def close(self, fd: int) -> None: ...

    def rename(self, src: Path, dst: Path) -> None: ...

    def link(self, src: Path, dst: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def mkdir(self, path: Path, mode: int = 0o777) -> None: ...

    def rmdir(self, path: Path) -> None: ...


calls: Calls = os

_MAGIC: Final = b"HFREC1\n"
_HEADER: Final = struct.Struct(">7sxQQ32s")  # magic, padding, counter, length, SHA-256 of counter ‖ body
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
    if path != gone and path.exists():
        _empty(gone)
        calls.rename(path, gone)
        sync_folder(path.parent)
    _empty(gone)


def _empty(folder: Path) -> None:
    if not folder.exists():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _empty(entry)
        else:
            calls.unlink(entry)
    calls.rmdir(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders of writers that were killed. Only the folder's one writer may call it."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
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

    __slots__ = ("_halves", "_on_damage")

    def __init__(self, path: Path, on_damage: Callable[[str], None] = lambda _: None) -> None:
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
        """Replace the older half by `body`; the new counter."""
        good, _ = self._halves_read()
        counter = max((found for found, _ in good), default=0) + 1
        header = _HEADER.pack(_MAGIC, counter, len(body), _checksum(counter, body))
        write_file(self._halves[counter % 2], header + body, mode=0o640)
        return counter

    def _halves_read(self) -> tuple[list[tuple[int, bytes]], list[str]]:
        good: list[tuple[int, bytes]] = []
        bad: list[str] = []
        for half in self._halves:
            try:
                good.append(_decode_half(half.read_bytes()))
            except FileNotFoundError:
                continue
            except (Damaged, OSError) as error:
                bad.append(f"{half.name}: {error}")
                self._on_damage(bad[-1])
        return good, bad


def _decode_half(raw: bytes) -> tuple[int, bytes]:
    if len(raw) < _HEADER.size:
        raise Damaged(f"{len(raw)} bytes are less than a header")
    magic, counter, length, checksum = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size :]
    if magic != _MAGIC or length != len(body) or checksum != _checksum(counter, body):
        raise Damaged("the checksum does not match")
    return counter, body


def _checksum(counter: int, body: bytes) -> bytes:
    return hashlib.sha256(counter.to_bytes(8, "big") + body).digest()


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
