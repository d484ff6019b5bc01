"""A built environment on this disk: exactly the files that were built, or it is damaged.

Whoever builds one lists every file by hash and every link by what it names; whoever verifies it finds those and nothing else, as
one more file in a folder of packages is code that runs. The list carries its own checksum, so a rotten list is no verdict.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from holdfast_agent.edge.reading import hash_of
from holdfast_shared import durable, strict_json
from holdfast_shared.errors import Malformed

LIST: Final = "holdfast-files.json"
# Some 100,000 files; the largest environments we know have a tenth.
LIST_BYTES_MAX: Final = 32 * 1024**2


class File(msgspec.Struct, frozen=True, array_like=True):
    sha256: str
    size_bytes: int


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """By path below the environment's folder."""

    files: dict[str, File]
    links: dict[str, str]


def write_list(root: Path) -> None:
    """List what lies in a folder that was just built, and is not in use yet."""
    body = strict_json.encode(_found(root))
    durable.write_file(root / LIST, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def damaged(root: Path, *, read: Callable[[int], None] | None = None) -> str:
    """What is wrong with it, in words; empty when it is what was built. `read` and OSError as in `blobs.damaged`."""
    try:
        listed = _read_list(root)
        there = {
            str(path.relative_to(root)): path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
        }
        there.pop(LIST, None)
        wanted = listed.files.keys() | listed.links.keys()
        if there.keys() != wanted:
            return f"files were added or lost: {', '.join(sorted(there.keys() ^ wanted)[:3])}"
        for name, path in there.items():
            if not (
                _link_holds(path, listed.links[name]) if name in listed.links else _holds(path, listed, name, read)
            ):
                return f"{name} is not what was built"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, Malformed) as error:
        return str(error)
    return ""


def _found(root: Path) -> Listed:
    files, links = {}, {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            links[name] = os.readlink(path)  # noqa: PTH115 - as it is written, not as a path
        elif path.is_file():
            files[name] = File(hash_of(path), path.stat().st_size)
    return Listed(files=files, links=links)


def _read_list(root: Path) -> Listed:
    with (root / LIST).open("rb") as stream:
        checksum, _, body = stream.read(LIST_BYTES_MAX + 1).partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise Malformed("the list of its files is damaged")
    return strict_json.decode(body, Listed, what="list of files", size_bytes_max=LIST_BYTES_MAX)


def _holds(path: Path, listed: Listed, name: str, read: Callable[[int], None] | None) -> bool:
    wanted = listed.files[name]
    if path.is_symlink() or not path.is_file() or path.stat().st_size != wanted.size_bytes:
        return False
    return hash_of(path, read=read) == wanted.sha256


def _link_holds(path: Path, to: str) -> bool:
    """It names what it named, and that is still there: an interpreter may have gone with an update of the system."""
    return path.is_symlink() and os.readlink(path) == to and path.exists()  # noqa: PTH115 - as it is written
