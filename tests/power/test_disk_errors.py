"""The disk refuses at any call: nothing that was there is harmed, the error is an OSError, and once the disk is well again the
device comes to where it was going.

Each call of each scenario is refused once, and from there on until the agent gave up. `HOLDFAST_POWER_FULL=1` does all four
errors at each; else they take turns.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.record_file import RecordFile
from holdfast_agent.fetch import staging
from holdfast_shared import durable
from support.hostile_server import HostileServer
from support.power_checks import check_files, check_record
from support.power_scenarios import SCENARIOS, Scenario
from support.powered_device import DAYS_WAKE_UPS_MAX, PoweredDevice, Witness
from support.recorded_disk import Image, Medium, RecordedDisk, lay_out

pytestmark = pytest.mark.slow
FULL: Final = os.environ.get("HOLDFAST_POWER_FULL") == "1"
ERRORS: Final = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE)
SMALL: Final = "256k"


class IllDisk:
    """Refuses call number `at`, or all from there on; reading is never refused."""

    def __init__(self, root: Path, at: int, number: int, *, lasting: bool) -> None:
        self.witness = Witness.of(root)
        self._folder = StateFolder(root / "state")
        self._at, self._number, self._lasting = at, number, lasting
        self.well = False
        self.refused = 0
        durable.calls = self.disk = RecordedDisk(root, self.witness.copy, before=self._before)

    def check(self) -> None:
        """Asked after each error, and in the end, with the disk as it then is."""
        was, self.well = self.well, True
        try:
            check_files(self._folder)
        finally:
            self.well = was

    def _before(self, call: int, _: str) -> None:
        if not self.well and (call == self._at or (self._lasting and call > self._at)):
            self.refused += 1
            raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "until it gives up"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[one.name for one in SCENARIOS])
def test_an_error_of_the_disk_harms_nothing(
    scenario: Scenario, lasting: bool, before: dict[str, Image], server: HostileServer, tmp_path: Path
) -> None:
    lay_out(before[scenario.name], tmp_path / "whole")
    durable.calls = whole = RecordedDisk(tmp_path / "whole", Witness)
    PoweredDevice(tmp_path / "whole", server.url).run(*scenario.phases)
    assert whole.asked > 5
    for at in range(whole.asked):
        for number in ERRORS if FULL else (ERRORS[at % len(ERRORS)],):
            root = tmp_path / f"{at}-{number}"
            lay_out(before[scenario.name], root)
            ill = IllDisk(root, at, number, lasting=lasting)
            try:
                _live(ill, root, server, scenario)
            except Exception as error:
                error.add_note(f"{scenario.name}: {errno.errorcode[number]} at call {at}, lasting: {lasting}")
                raise


def _live(ill: IllDisk, root: Path, server: HostileServer, scenario: Scenario) -> None:
    """Until the agent ends with an OSError or is done; then with a disk that is well."""
    device = PoweredDevice(root, server.url, ill.witness, ill.check)
    try:
        device.run(*scenario.phases)
    except OSError:
        ill.check()
        ill.disk.close_all()
    ill.well = True
    assert ill.refused > 0
    check_record(StateFolder(root / "state"), ill.witness)
    PoweredDevice(root, server.url, ill.witness, ill.check).run(*scenario.phases)
    check_files(StateFolder(root / "state"))
    medium = Medium.of(ill.disk)  # and what was promised after the error holds without power, too
    for operation in ill.disk.operations:
        medium.take(operation)
    lay_out(medium.durable, root.with_suffix(".cut"))
    durable.calls = RecordedDisk(root.with_suffix(".cut"), Witness)
    check_files(StateFolder(root.with_suffix(".cut") / "state"))
    check_record(StateFolder(root.with_suffix(".cut") / "state"), ill.witness)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of SMALL bytes."""
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", root], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def _fill(root: Path) -> Path:
    """Leave not a page."""
    filler = root / "filler"
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(bytes(4096))
            except OSError:
                return filler


def _refuses(work: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is asserted
        work()
    assert refused.value.errno == number


def test_a_disk_that_is_really_full_or_read_only_harms_nothing(
    small_disk: Path, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC and EROFS by a real kernel: the device serves what it served, and goes on when there is room again.

    A full disk does not keep it from going back: the record is saved over what it has.
    """
    monkeypatch.setattr(staging, "RESERVE_BYTES", 0)
    first, second, third = SCENARIOS[:3]
    folder, witness = StateFolder(small_disk / "state"), Witness()
    PoweredDevice(small_disk, server.url, witness).run(*first.phases)
    saved = witness.saved
    assert saved is not None

    filler = _fill(small_disk)
    with RecordFile(folder) as records:
        records.save(saved)
    device = PoweredDevice(small_disk, server.url, witness)
    with pytest.raises(AssertionError, match=r"it never comes to its goal: .* attempts=Attempts"):
        device.run(*second.phases)
    check_files(folder)
    check_record(folder, witness)
    filler.unlink()
    device.run(*second.phases, wake_ups_max=DAYS_WAKE_UPS_MAX)

    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    _refuses(lambda: PoweredDevice(small_disk, server.url).run(*third.phases), errno.EROFS)
    check_files(folder)
    check_record(folder, witness)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    PoweredDevice(small_disk, server.url, witness).run(*third.phases)
    check_files(folder)
