"""All durable file work is in `holdfast_shared.durable`, where tests can cut the power at it. This is the lint rule for that.

ruff cannot be it: it sees no method calls such as `path.unlink()`, and its one table of banned names is core/'s.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("agent", "server", "shared")
MODULES: Final = frozenset({"tempfile", "sqlite3", "shelve", "dbm"})
# Of `os`: what changes a disk, or makes it durable.
OS_CALLS: Final = re.compile(
    "chmod|chown|copy_file_range|fdatasync|fsync|ftruncate|lchown|link|makedirs|mkdir|mkfifo|mknod|posix_fallocate|pwritev?|"
    "remove|removedirs|removexattr|renames?|replace|rmdir|sendfile|setxattr|symlink|sync|truncate|unlink|utime|writev"
)
OS_FLAGS: Final = frozenset({"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"})
SHUTIL_READS: Final = frozenset({"disk_usage", "which", "get_terminal_size"})
# Methods of a path. `replace` is one only with a single argument: strings and structs have it, too.
METHODS: Final = re.compile(
    "l?chmod|extract|extractall|FileHandler|fdopen|hardlink_to|mkdir|rename|rmdir|RotatingFileHandler|symlink_to|touch|truncate|"
    "unlink|write_bytes|write_text"
)
# What is not durable file work, each with its reason.
ALLOWED: Final = {
    ("shared/holdfast_shared/durable.py", "os.open for writing"): "this is the place",
    ("shared/holdfast_shared/durable.py", ".mkdir"): "its calls",
    ("shared/holdfast_shared/durable.py", ".rename"): "its calls",
    ("shared/holdfast_shared/durable.py", ".rmdir"): "its calls",
    ("shared/holdfast_shared/durable.py", ".unlink"): "its calls",
    ("agent/holdfast_agent/edge/spool.py", "import sqlite3"): "SQLite has its own journal, and its own tests",
    ("agent/holdfast_agent/edge/local_control.py", ".unlink"): "a socket's name, gone with the next boot",
    ("agent/holdfast_gateway/http_service.py", ".unlink"): "a socket's name, gone with the next boot",
    ("agent/holdfast_gateway/control_groups.py", ".mkdir"): "the kernel's tree of control groups, on no disk",
    ("agent/holdfast_gateway/control_groups.py", ".rmdir"): "the kernel's tree of control groups, on no disk",
    ("agent/holdfast_gateway/control_groups.py", ".write_text"): "the kernel's tree of control groups, on no disk",
    ("agent/holdfast_worker/isolation/limits.py", ".write_bytes"): "the kernel's word on this process, on no disk",
    ("server/holdfast_server/process.py", "import tempfile"): "says where waitress may put bodies; writes nothing",
}


def found_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the kind of all that writes, renames, links, deletes or syncs."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                # Under another name, its calls could not be told.
                yield from (
                    (node.lineno, f"import {one.name} as")
                    for one in names
                    if one.asname and one.name in ("os", "shutil")
                )
                yield from ((node.lineno, f"import {one.name}") for one in names if one.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES:
                    yield node.lineno, f"import {module}"
                if module in ("os", "shutil"):  # under their own names, calls could not be told
                    yield node.lineno, f"from {module} import"
            case ast.Call():
                kind = _kind(node)
                if kind is not None:
                    yield node.lineno, kind
            case _:
                pass


def _kind(call: ast.Call) -> str | None:
    match call.func:
        case ast.Name(id="open"):
            return "open for writing" if _writes(call, 1) else None
        case ast.Attribute(value=ast.Name(id="os" | "calls"), attr="open"):
            named = {one.attr for one in ast.walk(call) if isinstance(one, ast.Attribute)}
            return "os.open for writing" if named & OS_FLAGS else None
        case ast.Attribute(value=ast.Name(id="os"), attr=attr) if OS_CALLS.fullmatch(attr):
            return f"os.{attr}"
        case ast.Attribute(value=ast.Name(id="shutil"), attr=attr) if attr not in SHUTIL_READS:
            return f"shutil.{attr}"
        case ast.Attribute(attr="open"):
            return "open for writing" if _writes(call, 0) else None
        case ast.Attribute(attr="replace") if len(call.args) == 1 and not call.keywords:
            return ".replace"
        case ast.Attribute(attr=attr) if METHODS.fullmatch(attr):
            return f".{attr}"
        case _:
            return None


def _writes(call: ast.Call, position: int) -> bool:
    """Whether an `open` names a mode that is more than reading, at its place or, as in `gzip.open(path, "wb")`, at the next."""
    modes = [one.value for one in call.keywords if one.arg == "mode"] + call.args[position : position + 2]
    constants = [one.value for one in modes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in constants)


def test_only_durable_writes_files() -> None:
    """Whatever else touches a disk is on the list, with its reason; and nothing is on the list that is not there."""
    found: dict[tuple[str, str], int] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, kind in found_in(ast.parse(path.read_bytes())):
                found[(str(path.relative_to(ROOT)), kind)] = line
    stray = [f"{path}:{line}: {kind}" for (path, kind), line in found.items() if (path, kind) not in ALLOWED]
    assert stray == [], "call holdfast_shared.durable instead"
    assert ALLOWED.keys() <= found.keys(), "no longer needed on the list"


@pytest.mark.parametrize(
    "text",
    [
        "path.write_bytes(b'')",
        "path.open('wb')",
        "path.open(mode='r+b')",
        "open(path, 'a')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.replace(a, b)",
        "a.replace(b)",
        "path.unlink(missing_ok=True)",
        "shutil.rmtree(path)",
        "import tempfile",
        "from tempfile import mkstemp",
        "from os import rename",
        "import sqlite3",
        "os.fsync(1)",
        "import os as system",
        "os.fdopen(1, 'w')",
        "io.open(path, 'w')",
        "gzip.open(path, mode='wb')",
        "archive.extractall(path)",
        "logging.FileHandler(path)",
    ],
)
def test_the_rule_sees(text: str) -> None:
    assert list(found_in(ast.parse(text))) != []


@pytest.mark.parametrize(
    "text",
    [
        "path.open('rb')",
        "path.read_bytes()",
        "text.replace('a', 'b')",
        "msgspec.structs.replace(record, number=1)",
        "replace(device, fetch=None)",
        "os.open(path, os.O_RDONLY | os.O_DIRECTORY)",
        "shutil.disk_usage(path)",
    ],
)
def test_the_rule_passes_over_reading(text: str) -> None:
    assert list(found_in(ast.parse(text))) == []
