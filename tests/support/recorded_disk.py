"""A disk that remembers what is durable: real calls in a real folder, each one noted, and what a power cut may leave of them.

The model is harsher than any file system we know. A file's bytes are durable once the file is synced; until then each write may
be kept, lost, torn in the middle, or leave zeros. A name (new, moved or gone) is durable once its folder is synced; until then
each may be kept or lost, whatever became of the others and of the bytes it names: "rename before data". Only two things hold
together: a move within one folder, and a move between two, whose old name does not go before the new one is there.

What other programs write under `others`, such as one that makes a virtual environment, is found before the next call, and is
taken for written and not synced.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

FOLDER: Final = -1
# All subsets up to so many pending operations; a seeded sample above.
EVERY_SUBSET_MAX: Final = 6
Fate = Literal["lost", "kept", "torn", "zeros"]
P = TypeVar("P")
# A whole tree: what each path holds; None is a folder, a text what a link names. Paths are relative.
Image = Mapping[Path, bytes | str | None]


class PowerCut(BaseException):
    """The process is gone. Nothing that it still tries happens, so that no clean-up of ours is taken for the kernel's."""


@dataclass(frozen=True, slots=True)
class Wrote:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Shortened:
    file: int
    length: int


@dataclass(frozen=True, slots=True)
class Synced:
    file: int


@dataclass(frozen=True, slots=True)
class SyncedFolder:
    path: Path


@dataclass(frozen=True, slots=True)
class Named:
    """Names that change together: to a file's number, to FOLDER, or to nothing."""

    entries: tuple[tuple[Path, int | None], ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """A folder, with all that is below it, to a new name in the same folder."""

    old: Path
    new: Path


Pending = Wrote | Shortened | Named | Moved
Operation = Pending | Synced | SyncedFolder


class RecordedDisk(Generic[P]):
    """`durable.Calls` under `root`. What lies there already is durable. It does not really sync: the medium is `operations`.

    `before` is asked at every call and may raise. `promised` holds what `promise` said just before each operation.
    """

    def __init__(
        self,
        root: Path,
        promise: Callable[[], P],
        *,
        before: Callable[[int, str], None] = lambda _, __: None,
        others: Path | None = None,
    ) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self.promised: list[P] = []
        self.descriptors: dict[int, Path] = {}
        self._promise = promise
        self.asked = 0
        self.before = before
        self._others = others
        self._files: dict[Path, int] = {}
        self._folders: set[Path] = set()
        self._count = 0
        self.links: dict[int, str] = {}
        self.began: dict[int, bytes] = {}
        self.began_names: dict[Path, int] = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            self.began_names[name] = number = self._known(path)
            if number != FOLDER and number not in self.links:
                self.began[number] = path.read_bytes()

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._ask("open")
        made = flags & os.O_CREAT and not path.exists()
        descriptor = os.open(path, flags, mode)
        if not flags & os.O_RDWR:  # a lock's, which its holder closes
            self.descriptors[descriptor] = self._name(path)
        if made:
            self._files[self._name(path)] = number = self._new_file()
            self._note(Named(((self._name(path), number),)))
        return descriptor

    def write(self, fd: int, data: memoryview, /) -> int:
        self._ask("write")
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        offset = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
        written = os.write(fd, data)
        self._note(Wrote(self._file(fd), offset, bytes(data[:written])))
        return written

    def ftruncate(self, fd: int, length: int) -> None:
        self._ask("ftruncate")
        os.ftruncate(fd, length)
        self._note(Shortened(self._file(fd), length))

    def fsync(self, fd: int) -> None:
        self._ask("fsync")
        path = self.descriptors[fd]
        self._note(Synced(self._files[path]) if (self.root / path).is_file() else SyncedFolder(path))

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def close(self, fd: int) -> None:
        del self.descriptors[fd]
        os.close(fd)

    def rename(self, src: Path, dst: Path) -> None:
        self._ask("rename")
        os.rename(src, dst)  # noqa: PTH104 - the very call
        old, new = self._name(src), self._name(dst)
        if dst.is_dir():
            self._move(old, new)
            return
        self._files[new] = self._files.pop(old)
        self._note(Named(((new, self._files[new]), (old, None))))

    def link(self, src: Path, dst: Path) -> None:
        self._ask("link")
        os.link(src, dst)
        self._files[self._name(dst)] = number = self._files[self._name(src)]
        self._note(Named(((self._name(dst), number),)))

    def unlink(self, path: Path) -> None:
        self._ask("unlink")
        os.unlink(path)  # noqa: PTH108 - the very call
        self._files.pop(self._name(path), None)
        self._note(Named(((self._name(path), None),)))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._ask("mkdir")
        os.mkdir(path, mode)  # noqa: PTH102 - the very call
        self._folders.add(self._name(path))
        self._note(Named(((self._name(path), FOLDER),)))

    def rmdir(self, path: Path) -> None:
        self._ask("rmdir")
        os.rmdir(path)  # noqa: PTH106 - the very call
        self._folders.discard(self._name(path))
        self._note(Named(((self._name(path), None),)))

    def close_all(self) -> None:
        """As the kernel does for a process that is gone."""
        for descriptor in list(self.descriptors):
            self.close(descriptor)

    def _note(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.promised.append(self._promise())

    def _move(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "between two folders, no folder is moved"
        self._files = {_renamed(name, old, new): number for name, number in self._files.items()}
        self._folders = {_renamed(name, old, new) for name in self._folders}
        self._note(Moved(old, new))

    def notice(self) -> None:
        """What other programs have written since."""
        if self._others is None:
            return
        for path in sorted(self._others.rglob("*")):
            name = self._name(path)
            if name in self._files or name in self._folders:
                continue
            number = self._known(path)
            self._note(Named(((name, number),)))
            if number != FOLDER and number not in self.links:
                self._note(Wrote(number, 0, path.read_bytes()))

    def _known(self, path: Path) -> int:
        name = self._name(path)
        if path.is_dir() and not path.is_symlink():
            self._folders.add(name)
            return FOLDER
        self._files[name] = number = self._new_file()
        if path.is_symlink():
            self.links[number] = os.readlink(path)  # noqa: PTH115 - as it is written
        return number

    def _ask(self, call: str) -> None:
        self.notice()
        self.before(self.asked, call)
        self.asked += 1

    def _name(self, path: Path) -> Path:
        """Relative; all that lies above the root, which is only ever synced, is one."""
        return path.relative_to(self.root) if path.is_relative_to(self.root) else Path("..")

    def _file(self, descriptor: int) -> int:
        return self._files[self.descriptors[descriptor]]

    def _new_file(self) -> int:
        self._count += 1
        return self._count


@dataclass(slots=True)
class Medium:
    """What is durable after some operations, and what is pending, in order."""

    files: dict[int, bytes]
    names: dict[Path, int]
    links: Mapping[int, str] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)

    @classmethod
    def of(cls, disk: RecordedDisk[P]) -> Medium:
        return cls(dict(disk.began), dict(disk.began_names), disk.links)

    def take(self, operation: Operation) -> None:
        match operation:
            case Wrote() | Shortened() | Named() | Moved():
                self.pending.append(operation)
            case Synced(file):
                for one in self._leave(lambda one: isinstance(one, Wrote | Shortened) and one.file == file):
                    _apply(one, self.files, self.names)
            case SyncedFolder(path):
                self._sync_folder(path)

    @property
    def durable(self) -> Image:
        """What is there when all that is pending is lost."""
        return self.image(["lost"] * len(self.pending))

    def survivors(self, chance: random.Random, samples: int) -> Iterator[Image]:
        """Every image that a cut here may leave, as far as the limits go; the same one may come more than once."""
        return map(self.image, self.fates(chance, samples))

    def fates(self, chance: random.Random, samples: int) -> Iterator[list[Fate]]:
        """What may become of all that is pending, in as many ways as there are survivors."""
        writes = [index for index, one in enumerate(self.pending) if isinstance(one, Wrote)]
        for kept in self._subsets(chance, samples):
            fates: list[Fate] = ["kept" if one else "lost" for one in kept]
            yield fates
            torn = next((index for index in reversed(writes) if kept[index]), None)
            if torn is not None:
                yield [*fates[:torn], "torn", *fates[torn + 1 :]]
            if any(not kept[index] for index in writes):
                yield ["zeros" if i in writes and not kept[i] else fate for i, fate in enumerate(fates)]

    def _subsets(self, chance: random.Random, samples: int) -> Iterator[tuple[bool, ...]]:
        count = len(self.pending)
        if count <= EVERY_SUBSET_MAX:
            yield from product((False, True), repeat=count)
            return
        for kept in (False, True):
            yield (kept,) * count
            for odd in range(count):
                yield tuple(kept != (index == odd) for index in range(count))
        for _ in range(samples):
            yield tuple(chance.random() < 0.5 for _ in range(count))

    def _sync_folder(self, path: Path) -> None:
        for one in self._leave(lambda one: path in _folders_of(one)):
            _apply(one, self.files, self.names)
            if not isinstance(one, Named):
                continue
            (new, _), *old = one.entries
            if old and new.parent == path != old[0][0].parent:  # the new name is durable, and the old one still there
                self.names[old[0][0]] = self.names[new]
                self.pending.append(Named(tuple(old)))

    def _leave(self, chosen: Callable[[Pending], bool]) -> list[Pending]:
        leaving = [one for one in self.pending if chosen(one)]
        self.pending = [one for one in self.pending if not chosen(one)]
        return leaving

    def image(self, fates: list[Fate]) -> Image:
        """What is left when that becomes of them."""
        files, names = dict(self.files), dict(self.names)
        unmoved: list[Moved] = []
        for given, fate in zip(self.pending, fates, strict=True):
            one = _before(given, unmoved)
            if isinstance(one, Moved) and fate != "kept":
                unmoved.append(one)
            elif isinstance(one, Wrote) and fate in ("torn", "zeros"):
                data = one.data[: len(one.data) // 2] if fate == "torn" else bytes(len(one.data))
                _apply(Wrote(one.file, one.offset, data), files, names)
            elif fate == "kept":
                _apply(one, files, names)
        found: dict[Path, bytes | str | None] = {}
        for name in sorted(names):
            if name.parent == Path() or found.get(name.parent, b"") is None:  # under a folder that is there
                number = names[name]
                found[name] = None if number == FOLDER else self.links.get(number, files.get(number, b""))
        return found


def fingerprint(image: Image) -> bytes:
    """Equal for equal images, whatever the random part of temporary names."""
    hasher = hashlib.sha256()
    for name, content in sorted(((_plain(name), content) for name, content in image.items()), key=lambda one: one[0]):
        kind = "folder" if content is None else f"link {content}" if isinstance(content, str) else len(content)
        hasher.update(f"{name}\0{kind}\0".encode() + (content if isinstance(content, bytes) else b""))
    return hasher.digest()


def lay_out(image: Image, root: Path) -> None:
    """The image as a real folder."""
    root.mkdir()
    for name, content in image.items():
        if content is None:
            (root / name).mkdir()
        elif isinstance(content, str):
            (root / name).symlink_to(content)
        else:
            (root / name).write_bytes(content)


def _plain(name: Path) -> str:
    return str(name.with_name(name.name.rpartition("-")[0])) if name.name.startswith(".partial-") else str(name)


def _renamed(name: Path, old: Path, new: Path) -> Path:
    return new / name.relative_to(old) if name.is_relative_to(old) else name


def _before(one: Pending, unmoved: list[Moved]) -> Pending:
    """Where it was done, if those folders never got their new names."""
    if not isinstance(one, Named):
        return one
    for move in unmoved:
        one = Named(tuple((_renamed(name, move.new, move.old), what) for name, what in one.entries))
    return one


def _folders_of(one: Pending) -> set[Path]:
    """Whose names it changes."""
    match one:
        case Named(entries):
            return {name.parent for name, _ in entries}
        case Moved(old):
            return {old.parent}
        case _:
            return set()


def _apply(one: Pending, files: dict[int, bytes], names: dict[Path, int]) -> None:
    match one:
        case Wrote(file, offset, data):
            before = files.get(file, b"")[:offset]
            files[file] = before + bytes(offset - len(before)) + data + files.get(file, b"")[offset + len(data) :]
        case Shortened(file, length):
            files[file] = files.get(file, b"")[:length]
        case Moved(old, new):
            for name in [one for one in names if one.is_relative_to(old)]:
                names[_renamed(name, old, new)] = names.pop(name)
            names[new] = FOLDER
        case Named(entries):
            for name, what in entries:
                if what is None:
                    names.pop(name, None)
                else:
                    names[name] = what
