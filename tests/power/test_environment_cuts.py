"""The power is cut at every operation of building an environment: it is whole, or it is not there and is built again.

What venv, the wheels and the compiler write counts as well: none of it is durable before the building has synced it.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from holdfast_agent.edge import blobs, environments
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import staging
from holdfast_agent.fetch.manifests import Order, Source
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared import durable
from holdfast_worker import installed
from support import published, wheels
from support.hostile_server import HostileServer, honest
from support.published import MIRA, Making
from support.recorded_disk import Image, Medium, Moved, PowerCut, RecordedDisk, fingerprint, lay_out

pytestmark = pytest.mark.slow
FULL: Final = os.environ.get("HOLDFAST_POWER_FULL") == "1"
# Of the images that a cut leaves, as long as what is built has no environment's name; afterwards all are looked at.
DRAWN: Final = 40 if FULL else 2
BUILT_AGAIN_EVERY: Final = 3 if FULL else 12
KILLS: Final = None if FULL else 4
WORKER: Final = wheels.small("holdfast_worker", "0.0", {"holdfast_worker/__init__.py": b""})
TIDY: Final = wheels.small("tidy", "1.0", {"tidy/__init__.py": b"ANSWER = 42\n"})
ONE, TWO = (
    wheels.environment(version, packages=(), more=more, worker_packed=WORKER, key=MIRA)
    for version, more in (("1.0.0", ()), ("1.1.0", (TIDY,)))
)
RELEASE: Final = published.publish(
    making=Making(size_bytes=500, release={"environments": (ONE.digest, TWO.digest, "system")})
)


SYSTEM: Final = "system"


def stage(root: Path, source: Source, environment: str) -> None:
    """What the fetch process does."""
    order = Order("digits", RELEASE.release.version, RELEASE.digest, environment)
    staging.stage(source._replace(folder=StateFolder(root / "state")), order, Deadline(60), machine=installed.machine())


@pytest.fixture
def source(server: HostileServer) -> Source:
    for digest, envelope in [*RELEASE.manifests.items(), *((one.digest, one.envelope) for one in (ONE, TWO))]:
        server.on(f"/api/v1/manifests/{digest}", honest(envelope))
    for digest, content in {**RELEASE.blobs, **ONE.blobs, **TWO.blobs}.items():
        server.on(f"/api/v1/blobs/{digest}", honest(content))
    return Source(server.url, StateFolder(Path("/nowhere")), published.authorities())


def beside_another(root: Path, source: Source) -> str:
    """The first stands; the second is wanted."""
    stage(root, source, ONE.digest)
    return TWO.digest


def in_place_of_a_damaged_one(root: Path, source: Source) -> str:
    """Both stood; the second is damaged, and wanted again."""
    stage(root, source, ONE.digest)
    stage(root, source, TWO.digest)
    rotten(root).write_bytes(b"rotten")
    return TWO.digest


def rotten(root: Path) -> Path:
    return next(StateFolder(root / "state").environment(TWO.digest).rglob("tidy/__init__.py"))


Beginning = Callable[[Path, Source], str]
BEGINNINGS: Final = (beside_another, in_place_of_a_damaged_one)
NAMES: Final = [one.__name__ for one in BEGINNINGS]


class Cutting:
    """Each different image of a disk once."""

    def __init__(self, folder: Path, source: Source, wanted: str, *, rotted: bool) -> None:
        self._folder, self._source, self._wanted, self._rotted = folder, source, wanted, rotted
        self._chance = random.Random(7)
        self._seen: set[tuple[bytes, bool]] = set()
        self.named = 0  # images in which it has its name

    def at_every_operation(self, disk: RecordedDisk[None], first: int = 0) -> None:
        """`staging.stage` returned after the last of them: from then on it is there, whatever is lost."""
        medium = Medium.of(disk)
        drawn: int | None = DRAWN
        for index, operation in enumerate(disk.operations):
            medium.take(operation)
            if isinstance(operation, Moved) and operation.old.name.startswith(".partial-"):
                drawn = None
            if index >= first:
                self._cut(medium, index, drawn, done=index == len(disk.operations) - 1)

    def _cut(self, medium: Medium, index: int, drawn: int | None, *, done: bool) -> None:
        fates = list(medium.fates(self._chance, 200 if FULL else 12))
        for chosen in fates if drawn is None else self._chance.sample(fates, min(drawn, len(fates))):
            image = medium.image(chosen)
            key = (fingerprint(image), done)
            if key not in self._seen:
                self._seen.add(key)
                try:
                    self._check(image, done=done)
                except AssertionError as error:
                    error.add_note(f"cut after operation {index}: {sorted(map(str, image))}")
                    raise

    def _check(self, image: Image, *, done: bool) -> None:
        root = self._folder / f"image-{len(self._seen)}"
        lay_out(image, root)
        recorded(root)  # does not really sync: a hundred times quicker
        folder = StateFolder(root / "state")
        self._check_named(folder)
        if done:
            assert blobs.damaged(folder, self._wanted) == [], "its staging had returned"
        if len(self._seen) % BUILT_AGAIN_EVERY == 0:
            stage(root, self._source, self._wanted)
            self._rotted, rotted = False, self._rotted
            self._check_named(folder)
            self._rotted = rotted
            assert blobs.damaged(folder, self._wanted) == []
            assert not list(folder.environments.glob(".partial-*")), "what was left is gone"

    def _check_named(self, folder: StateFolder) -> None:
        assert blobs.damaged(folder, ONE.digest) == [], "what stood is harmed"
        assert blobs.damaged(folder, RELEASE.digest) == [], "what stood is harmed"
        root = folder.environment(self._wanted)
        if not root.exists():
            return
        self.named += 1
        why = environments.damaged(root)
        assert why == "" or (self._rotted and why.endswith("tidy/__init__.py is not what was built")), why


def begun(beginning: Beginning, root: Path, source: Source) -> str:
    root.mkdir()
    return beginning(root, source)


def recorded(root: Path, before: Callable[[int, str], None] = lambda _, __: None) -> RecordedDisk[None]:
    durable.calls = disk = RecordedDisk(root, lambda: None, before=before, others=root / "state" / "environments")
    return disk


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=NAMES)
def test_whatever_a_power_cut_leaves_it_is_whole_or_built_again(
    beginning: Beginning, source: Source, tmp_path: Path
) -> None:
    root = tmp_path / "state-folder"
    wanted = begun(beginning, root, source)
    disk = recorded(root)
    stage(root, source, wanted)
    cutting = Cutting(tmp_path, source, wanted, rotted=beginning is in_place_of_a_damaged_one)
    cutting.at_every_operation(disk)
    assert cutting.named > 0


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=NAMES)
def test_what_a_killed_building_left_is_not_relied_on(beginning: Beginning, source: Source, tmp_path: Path) -> None:
    """Killed before a sync, started again, and then the power is cut: whatever it found there is durable once it returns."""
    whole = tmp_path / "whole"
    wanted = begun(beginning, whole, source)
    disk = recorded(whole)
    stage(whole, source, wanted)
    calls = range(1, disk.asked)
    chosen = calls if KILLS is None else random.Random(beginning.__name__).sample(calls, KILLS)

    def just_named(root: Path) -> bool:
        return environments.damaged(StateFolder(root / "state").environment(wanted)) == ""

    moments: list[Moment] = [lambda _, root: just_named(root), *(functools.partial(reached, at) for at in chosen)]
    for number, moment in enumerate(moments):
        root = tmp_path / f"killed-{number}"
        begun(beginning, root, source)
        killed = kill(root, source, wanted, moment)
        stage(root, source, wanted)
        last = len(killed.operations) - 1
        Cutting(root, source, wanted, rotted=False).at_every_operation(killed, last)


Moment = Callable[[int, Path], bool]


def reached(at: int, call: int, _: Path) -> bool:
    return call >= at


def kill(root: Path, source: Source, wanted: str, moment: Moment) -> RecordedDisk[None]:
    """A building until it is killed before its call at that moment."""

    def before(call: int, _: str) -> None:
        if moment(call, root):
            raise PowerCut

    disk = recorded(root, before)
    with pytest.raises(PowerCut):
        stage(root, source, wanted)
    disk.close_all()
    disk.before = lambda _, __: None
    return disk


def test_a_building_that_syncs_nothing_is_found(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep is sharp: with the usual mistake, an environment has its name and not its files."""
    root = tmp_path / "state-folder"
    wanted = begun(beside_another, root, source)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "move_folder_into_place", lambda old, new: durable.calls.rename(old, new))  # noqa: PLW0108 - its calls are put in later
        disk = recorded(root)
        stage(root, source, wanted)
    with pytest.raises(AssertionError, match=r"files were added or lost|not what was built|No such file|damaged"):
        Cutting(tmp_path, source, wanted, rotted=False).at_every_operation(disk)
