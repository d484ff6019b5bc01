"""Hostile JSON is refused with a name for what is wrong, before anyone sees a value."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed


class Point(msgspec.Struct, frozen=True):
    x: int
    more: dict[str, float] = {}
    nested: tuple[tuple[tuple[int, ...], ...], ...] = ()


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b'{"x": 1, "x": 2}', "twice"),
        (b'{"x": 1, "\\u0078": 2}', "twice"),
        (b'{"x": 1, "more": {"a": 1, "a": 2}}', "twice"),
        (b'{"x": 1, "more": {"a": NaN}}', "not valid JSON"),
        (b'{"x": 1, "more": {"a": 1e999}}', "out of range"),
        (b'{"x": 1.5}', "x"),
        (b'{"x": "1"}', "x"),
        (b"{}", "x"),
        (b'{"x": 1} {}', "not valid JSON"),
        (b'\xef\xbb\xbf{"x": 1}', "not valid JSON"),
        (b'{"x": 1, "more": {"\xff": 1}}', "not valid JSON"),
        (b'{"x": 1, "unknown": ' + b"[" * 9 + b"]" * 9 + b"}", "nests deeper"),
        (b'{"x": ' + b"[" * 30_000, "nests deeper"),
        (b"", "not valid JSON"),
        (b'{"x": 1' + b" " * 70_000 + b"}", "at most 65536"),
    ],
)
def test_refused_by_name(raw: bytes, named: str) -> None:
    with pytest.raises(Malformed) as refused:
        strict_json.decode(raw, Point, what="point", size_bytes_max=65_536)
    assert named in str(refused.value)


def test_brackets_in_a_string_do_not_nest() -> None:
    raw = b'{"x": 1, "unknown": "' + b"[" * 100 + b'\\"' + b'{"}'
    assert strict_json.decode(raw, Point, what="point", size_bytes_max=65_536) == Point(1)


def test_unknown_fields_are_for_later_versions() -> None:
    assert strict_json.decode(b'{"x": 1, "later": {"a": []}}', Point, what="point", size_bytes_max=100).x == 1


def test_encoding_is_the_same_for_equal_values() -> None:
    one = Point(1, {"b": 1.0, "a": 2.0})
    other = Point(1, {"a": 2.0, "b": 1.0})
    assert strict_json.encode(one) == strict_json.encode(other)


_MANY_THREADS_FIRST = """
import sys, threading
import msgspec
from holdfast_shared import strict_json

sys.setswitchinterval(1e-6)


def first_decodes(number):
    inner = msgspec.defstruct(f"Inner{number}", [("a", int), ("b", dict[str, int])])
    outer = msgspec.defstruct(f"Outer{number}", [("one", inner), ("more", tuple[inner, ...])])
    raw = b'{"one": {"a": 1, "b": {}}, "more": [{"a": 2, "b": {"c": 3}}]}'
    together = threading.Barrier(6)

    def decode():
        together.wait()
        if number % 2:
            assert strict_json.decode(raw, outer, what="it", size_bytes_max=999).more[0].a == 2
        else:
            assert strict_json.stored(raw, outer).more[0].a == 2

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


for number in range(60):
    first_decodes(number)
"""


def test_several_threads_may_be_the_first_to_decode_a_type() -> None:
    """msgspec alone ends the whole process with SIGSEGV: a server, at its first two requests at once."""
    done = subprocess.run([sys.executable, "-c", _MANY_THREADS_FIRST], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_server_reads_no_type_where_another_thread_may_be_the_first_too() -> None:
    """`strict_json` makes one decoder at a time, and a module's own are made when it is imported."""
    found = [
        f"{path}:{node.lineno}"
        for path in sorted((Path(__file__).parents[2] / "server" / "holdfast_server").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("msgspec.json.decode", "msgspec.convert")
    ]
    assert found == [], "use strict_json.stored"
