"""A folder that is being deleted is whole or not there, also when who deleted it was killed, and then the power is cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from holdfast_shared import durable
from support.recorded_disk import Medium, PowerCut, RecordedDisk

FILES: Final = {"a": b"1", "sub/b": b"2", "sub/c": b"3"}
Removal = Callable[[Path], None]


def by_its_name(place: Path) -> None:
    durable.remove_folder(place / "whole")


def made_anew(place: Path) -> None:
    """The one that was killed may have been at its files; a new one of its name is not durable yet."""
    if not (place / "whole").exists():
        durable.calls.mkdir(place / "whole")
    durable.remove_folder(place / "whole")


def with_all_leftovers(place: Path) -> None:
    durable.remove_leftovers(place)
    durable.remove_folder(place / "whole")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where the folder stands."""
    root = tmp_path / "root"
    for name, content in FILES.items():
        (root / "place" / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "place" / "whole" / name).write_bytes(content)
    before = durable.calls
    yield root / "place"
    durable.calls = before


def killed(place: Path, at: int) -> RecordedDisk[None]:
    """A removal that is killed before that call."""

    def before(call: int, _: str) -> None:
        if call == at:
            raise PowerCut

    durable.calls = disk = RecordedDisk(place.parent, lambda: None, before=before)
    with pytest.raises(PowerCut):
        by_its_name(place)
    disk.close_all()
    disk.before = lambda _, __: None
    return disk


@pytest.mark.parametrize("again", [by_its_name, made_anew, with_all_leftovers], ids=lambda one: one.__name__)
@pytest.mark.parametrize("at", range(8))
def test_what_a_killed_removal_left_is_whole_or_not_there(at: int, again: Removal, place: Path) -> None:
    """The one that follows takes the files only once it is durable that they have lost their folder's name."""
    disk = killed(place, at)
    again(place)
    whole = [{f"place/whole/{name}": content for name, content in FILES.items()}]
    if again is made_anew:
        whole.append({})
    medium, chance = Medium.of(disk), random.Random(at)
    for operation in disk.operations:
        medium.take(operation)
        for image in medium.survivors(chance, 20):
            found = {str(path): content for path, content in image.items() if path.parts[:2] == ("place", "whole")}
            files = {name: content for name, content in found.items() if content is not None}
            assert not found or files in whole
    assert list(place.iterdir()) == []
