"""Whether a file is a wheel that a device can unpack, and what it says of itself: asked before a mistake is uploaded.

A wheel is a zip with a RECORD that names every file by hash (PEP 427). All of it is read here, and nothing of it is run; whether
it fits an interpreter is the device's to say.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from holdfast_shared.errors import Malformed

# What a device unpacks at most of one wheel: larger than any runtime we know.
ENTRIES_MAX: Final = 100_000
UNPACKED_BYTES_MAX: Final = 8 * 1024**3
# In its .dist-info: which versions of the worker protocol a wheel of the worker speaks. Written by scripts/worker_wheel.py.
PROTOCOL: Final = "holdfast_protocol.json"
WORKER: Final = "holdfast_worker"
_SMALL_BYTES_MAX: Final = 16 * 1024**2
_PIECE_BYTES: Final = 1024 * 1024
_PARTS: Final = (5, 6)  # name-version[-build]-python-abi-platform.whl
_ESCAPES: Final = re.compile(r"(^|/)\.\.(/|$)|^/|\\")


class Protocol(msgspec.Struct, frozen=True):
    oldest: int
    newest: int


class Facts(NamedTuple):
    """`protocol`: of a worker's wheel, else None."""

    unpacked_bytes: int
    protocol: Protocol | None


def is_worker(filename: str) -> bool:
    return filename.partition("-")[0] == WORKER


def facts_of(path: Path, filename: str) -> Facts:
    """Of the file at `path`, which is to be called `filename`. Raises Malformed: what it is not."""
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in _PARTS:
        raise Malformed(f"{filename!r} is no wheel's name: it is name-version-python-abi-platform.whl")
    try:
        with zipfile.ZipFile(path) as archive:
            return _facts(archive, f"{parts[0]}-{parts[1]}.dist-info/")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, csv.Error) as error:
        raise Malformed(f"is no wheel: {error}") from error


def _facts(archive: zipfile.ZipFile, information: str) -> Facts:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    size = sum(entry.file_size for entry in entries)
    if len(entries) > ENTRIES_MAX or size > UNPACKED_BYTES_MAX:
        raise Malformed(
            f"it holds {len(entries)} files of {size} bytes; at most {ENTRIES_MAX} of {UNPACKED_BYTES_MAX} may be"
        )
    names = [entry.filename for entry in entries]
    seen: set[str] = set()
    for name in names:
        if _ESCAPES.search(name) or name in seen:
            raise Malformed(f"it holds {name!r}, outside of it or twice: no device unpacks that")
        seen.add(name)
    if f"{information}RECORD" not in names or f"{information}WHEEL" not in names:
        raise Malformed(f"it has no {information}RECORD and WHEEL, as its name says it has")
    _check_record(archive, entries, f"{information}RECORD")
    protocol = None
    if f"{information}{PROTOCOL}" in names:
        try:
            protocol = msgspec.json.decode(_small(archive, f"{information}{PROTOCOL}"), type=Protocol)
        except msgspec.DecodeError as error:
            raise Malformed(f"its {PROTOCOL} cannot be read: {error}") from error
    return Facts(size, protocol)


def _check_record(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], record: str) -> None:
    lines = csv.reader(io.StringIO(_small(archive, record).decode()))
    recorded = {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}
    for entry in entries:
        if entry.filename == record:
            continue
        if entry.filename not in recorded:
            raise Malformed(f"its RECORD does not name {entry.filename}")
        hashed, size = recorded[entry.filename]
        if hashed != f"sha256={_hash(archive, entry)}" or size != str(entry.file_size):
            raise Malformed(f"{entry.filename} is not what its RECORD says (a sha256 and a length are expected)")


def _hash(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    hasher = hashlib.sha256()
    with archive.open(entry) as stream:
        while piece := stream.read(_PIECE_BYTES):
            hasher.update(piece)
    return base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        raw = stream.read(_SMALL_BYTES_MAX + 1)
    if len(raw) > _SMALL_BYTES_MAX:
        raise Malformed(f"its {name} is larger than {_SMALL_BYTES_MAX} bytes")
    return raw
