"""The power is cut at every operation of the shipped code, and whatever the disk may have kept, the device keeps its promises.

`HOLDFAST_POWER_FULL=1` also kills the agent at *every* operation before the cut, instead of at a sample of them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from holdfast_agent.fetch import staging
from holdfast_shared import durable
from support.hostile_server import HostileServer
from support.power_checks import check_survivor
from support.power_scenarios import SCENARIOS, Scenario
from support.powered_device import PoweredDevice, Witness
from support.recorded_disk import Image, Medium, Named, PowerCut, RecordedDisk, fingerprint, lay_out

pytestmark = pytest.mark.slow
FULL: Final = os.environ.get("HOLDFAST_POWER_FULL") == "1"
SAMPLES: Final = 200 if FULL else 12
KILLS: Final = None if FULL else 5
NAMES: Final = [one.name for one in SCENARIOS]


class Cutting:
    """Every cut of what a disk recorded, each different image once."""

    def __init__(self, folder: Path, server: HostileServer, scenario: Scenario) -> None:
        self._folder, self._server, self._scenario = folder, server, scenario
        self._seen: set[tuple[bytes, str]] = set()
        self._numbers = itertools.count()

    def at_every_operation(self, disk: RecordedDisk[Witness], last: Witness, first: int = 0) -> None:
        """After each operation from the `first` on, with what was promised by the time the next one began."""
        medium, chance = Medium.of(disk), random.Random(7)
        promises = [*disk.promised[1:], last]
        for index, (operation, promised) in enumerate(zip(disk.operations, promises, strict=True)):
            medium.take(operation)
            if index >= first:
                for image in medium.survivors(chance, SAMPLES):
                    self._check(image, promised, index)

    def _check(self, image: Image, promised: Witness, index: int) -> None:
        key = (fingerprint(image), repr(promised))
        if key in self._seen:
            return
        self._seen.add(key)
        root = self._folder / f"image-{next(self._numbers)}"
        try:
            check_survivor(image, root, self._server.url, promised, self._scenario)
        except Exception as error:
            error.add_note(f"{self._scenario.name}, cut after operation {index}: {sorted(map(str, image))}")
            raise

    @property
    def images(self) -> int:
        return len(self._seen)


def lived(root: Path, server: HostileServer, scenario: Scenario) -> tuple[RecordedDisk[Witness], Witness]:
    witness = Witness.of(root)
    durable.calls = disk = RecordedDisk(root, witness.copy)
    PoweredDevice(root, server.url, witness).run(*scenario.phases)
    return disk, witness


@pytest.fixture
def begun(before: dict[str, Image], tmp_path: Path) -> Callable[[Scenario], Path]:
    """A folder with the disk that a scenario begins with."""
    numbers = itertools.count()

    def lay(scenario: Scenario) -> Path:
        root = tmp_path / f"begun-{next(numbers)}"
        lay_out(before[scenario.name], root)
        return root

    return lay


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_whatever_a_power_cut_leaves_the_device_keeps_its_promises(
    scenario: Scenario,
    begun: Callable[[Scenario], Path],
    server: HostileServer,
    tmp_path: Path,
) -> None:
    """Any unsynced bytes and names lost, kept, torn, zeroed, or kept without what they name."""
    disk, last = lived(begun(scenario), server, scenario)
    cutting = Cutting(tmp_path, server, scenario)
    cutting.at_every_operation(disk, last)
    assert cutting.images > len(disk.operations) / 2, "most operations change what a cut leaves"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_a_cut_after_the_restart_of_a_killed_agent_is_no_worse(
    scenario: Scenario,
    begun: Callable[[Scenario], Path],
    server: HostileServer,
    tmp_path: Path,
) -> None:
    """SIGKILL between a write and its sync leaves what looks durable and is not: the restarted agent must not rely on it."""
    whole, _ = lived(begun(scenario), server, scenario)
    indices: Sequence[int] = range(1, whole.asked)
    if KILLS is not None:
        indices = sorted(random.Random(scenario.name).sample(indices, min(KILLS, len(indices))))
    cutting = Cutting(tmp_path, server, scenario)
    for killed_at in indices:
        root = begun(scenario)
        witness = Witness.of(root)
        disk = killed(root, server, scenario, killed_at, witness)
        first = len(disk.operations)
        disk.before = lambda _, __: None
        PoweredDevice(root, server.url, witness).run(*scenario.phases)
        cutting.at_every_operation(disk, witness, first)
    assert cutting.images > len(indices), "a killed agent leaves more than one state to be cut"


def test_what_a_killed_collection_deleted_stays_gone(
    begun: Callable[[Scenario], Path], server: HostileServer, tmp_path: Path
) -> None:
    """Killed after a manifest's name went and before that was durable: what it names must not go first at the restart."""
    scenario = next(one for one in SCENARIOS if one.name == "update, and garbage collected")
    root = begun(scenario)
    witness = Witness.of(root)

    def kill(_: int, __: str) -> None:
        last = disk.operations[-1] if disk.operations else None
        if isinstance(last, Named) and last.entries[0][1] is None and "manifests" in last.entries[0][0].parts:
            raise PowerCut

    durable.calls = disk = RecordedDisk(root, witness.copy, before=kill)
    with pytest.raises(PowerCut):
        PoweredDevice(root, server.url, witness).run(*scenario.phases)
    disk.close_all()
    first = len(disk.operations)
    disk.before = lambda _, __: None
    PoweredDevice(root, server.url, witness).run(*scenario.phases)
    Cutting(tmp_path, server, scenario).at_every_operation(disk, witness, first)


def killed(root: Path, server: HostileServer, scenario: Scenario, at: int, witness: Witness) -> RecordedDisk[Witness]:
    """The agent's life until it is killed before its call number `at`."""

    def kill(call: int, _: str) -> None:
        if call >= at:
            raise PowerCut

    durable.calls = disk = RecordedDisk(root, witness.copy, before=kill)
    with pytest.raises(PowerCut):
        PoweredDevice(root, server.url, witness).run(*scenario.phases)
    disk.close_all()
    return disk


def without_file_syncs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(durable, "_sync", lambda path, flags=0: _synced(path) if flags else None)
    patch.setattr(RecordedDisk, "fsync", _only_folders(RecordedDisk.fsync))


def without_folder_syncs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(durable, "sync_folder", lambda _: None)


def syncing_the_wrong_folder(patch: pytest.MonkeyPatch) -> None:
    right = durable.sync_folder
    patch.setattr(durable, "sync_folder", lambda path: right(path.parent))


def renaming_before_syncing(patch: pytest.MonkeyPatch) -> None:
    def append(path: Path, data: bytes) -> None:
        descriptor = durable.calls.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        durable.calls.write(descriptor, memoryview(data))
        durable.calls.close(descriptor)

    def rename(source: Path, target: Path) -> None:
        durable.calls.rename(source, target)
        durable.sync_folder(target.parent)
        durable._sync(target)

    patch.setattr(durable, "append_and_sync", append)
    patch.setattr(durable, "rename_into_place", rename)


def naming_manifests_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(staging, "_keep_for_later", staging._name_manifests)


def _synced(path: Path) -> None:
    descriptor = durable.calls.open(path, os.O_RDONLY | os.O_DIRECTORY)
    durable.calls.fsync(descriptor)
    durable.calls.close(descriptor)


def _only_folders(fsync: Callable[[RecordedDisk[Witness], int], None]) -> Callable[[RecordedDisk[Witness], int], None]:
    def chosen(disk: RecordedDisk[Witness], fd: int) -> None:
        if (disk.root / disk.descriptors[fd]).is_dir():
            fsync(disk, fd)

    return chosen


@pytest.mark.parametrize(
    "broken",
    [
        without_file_syncs,
        without_folder_syncs,
        syncing_the_wrong_folder,
        renaming_before_syncing,
        naming_manifests_first,
    ],
)
def test_code_that_is_broken_is_found(
    broken: Callable[[pytest.MonkeyPatch], None],
    begun: Callable[[Scenario], Path],
    server: HostileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sweep itself is sharp: it fails for each way in which durable file work is commonly got wrong."""
    scenario = SCENARIOS[1]
    root = begun(scenario)
    with monkeypatch.context() as patch:
        broken(patch)
        disk, last = lived(root, server, scenario)
    with pytest.raises(AssertionError):
        Cutting(tmp_path, server, scenario).at_every_operation(disk, last)
