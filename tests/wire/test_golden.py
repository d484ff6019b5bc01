"""Golden files: one per wire type and version. Old ones load for ever, and today's code still writes them byte for byte.

A change of a type that breaks a file here breaks devices in the field: add a version, and keep the old file. To write the
file of a new type: `PYTHONPATH=tests python tests/wire/test_golden.py NAME`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from holdfast_shared import authorities, strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.wire import assignment, command, environment, membership, release, report, transfers
from support.golden_documents import DOCUMENTS

GOLDEN: Final = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_golden_file_loads_and_is_written_again(name: str) -> None:
    raw = (GOLDEN / f"{name}.json").read_bytes()
    value = DOCUMENTS[name]
    assert strict_json.decode(raw, type(value), what=name, size_bytes_max=1024**2) == value
    assert strict_json.encode(value) == raw


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_has_a_value_in_it(name: str) -> None:
    """Golden documents that leave a field at its default would not notice that the field is gone.

    A field that came later has its value in a file of its own, `NAME-….json`: the older ones stay as they were written.
    """
    values = [DOCUMENTS[name], *(value for other, value in DOCUMENTS.items() if other.startswith(f"{name}-"))]
    later = [value for other, value in DOCUMENTS.items() if name.startswith(f"{other}-")]
    for field in msgspec.structs.fields(DOCUMENTS[name]):
        if not field.required and not later:
            assert any(getattr(value, field.name) != field.default for value in values), field.name


def test_every_field_of_a_window_has_a_value() -> None:
    windows = [one for value in DOCUMENTS.values() if isinstance(value, report.Report) for one in value.windows]
    for field in msgspec.structs.fields(report.Window):
        assert field.required or any(getattr(one, field.name) != field.default for one in windows), field.name


def test_every_field_of_a_windows_shadow_has_a_value() -> None:
    windows = [one for value in DOCUMENTS.values() if isinstance(value, report.Report) for one in value.windows]
    shadows = [one.shadow for one in windows if one.shadow is not None]
    for field in msgspec.structs.fields(report.ShadowCounts):
        assert any(getattr(one, field.name) != field.default for one in shadows), field.name


@pytest.mark.parametrize("path", sorted((GOLDEN / "older").glob("*.json")), ids=lambda path: path.stem)
def test_what_was_written_before_a_field_was_added_still_loads(path: Path) -> None:
    """`older/NAME.before-FIELD.json`: everything that stands in it is read, and the field has its default."""
    raw = path.read_bytes()
    name, _, field = path.stem.partition(".before-")
    value = strict_json.decode(raw, type(DOCUMENTS[name]), what=name, size_bytes_max=1024**2)
    default = next(one.default for one in msgspec.structs.fields(value) if one.name == field)
    assert getattr(value, field) == default
    written = msgspec.json.decode(strict_json.encode(value))
    assert written.items() >= msgspec.json.decode(raw).items()


def test_there_is_a_file_for_every_type_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(DOCUMENTS)
    types = {
        assignment.TYPE,
        membership.TYPE,
        release.MODEL_TYPE,
        release.RELEASE_TYPE,
        environment.TYPE,
        report.TYPE,
        command.TYPE,
        authorities.TYPE,
        transfers.TYPE,
    }
    assert {msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())["type"] for name in DOCUMENTS} == types
    verbs = {arm.__struct_config__.tag for arm in command.Act.__args__}
    assert {
        value.act.__struct_config__.tag for value in DOCUMENTS.values() if isinstance(value, command.Command)
    } == verbs


def test_a_field_of_a_later_version_is_ignored_but_in_a_command() -> None:
    later = (GOLDEN / "assignment-1.json").read_bytes().replace(b'{"type"', b'{"later":{"a":1},"type"', 1)
    assert (
        strict_json.decode(later, assignment.Assignment, what="a", size_bytes_max=1024**2) == DOCUMENTS["assignment-1"]
    )
    typo = (GOLDEN / "command-1-rollback.json").read_bytes().replace(b'"segment"', b'"segmnet"')
    with pytest.raises(Malformed, match="segmnet"):
        strict_json.decode(typo, command.Command, what="command", size_bytes_max=1024**2)


def test_another_version_of_a_type_is_refused() -> None:
    later = (GOLDEN / "report-1.json").read_bytes().replace(b"holdfast.report/1", b"holdfast.report/2")
    with pytest.raises(Malformed, match="report/2"):
        strict_json.decode(later, report.Report, what="report", size_bytes_max=1024**2)


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        (GOLDEN / f"{chosen}.json").write_bytes(strict_json.encode(DOCUMENTS[chosen]))
