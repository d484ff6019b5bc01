"""What must hold of a device's disk after the power was cut, or after its disk failed, by what was promised until then."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast_agent.core.record import Record
from holdfast_agent.edge import blobs
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.record_file import RecordFile
from holdfast_shared import durable
from support.power_scenarios import RELEASES, Scenario
from support.powered_device import PIPELINE, PoweredDevice, Witness, needed_slots
from support.recorded_disk import Image, RecordedDisk, lay_out

MANIFESTS: Final = {digest: envelope for one in RELEASES for digest, envelope in one.manifests.items()}
BLOBS: Final = {digest: blob for one in RELEASES for digest, blob in one.blobs.items()}
# What must be there beside a manifest that is.
NEEDED: Final = {
    **{one.digest: {*one.blobs, *one.manifests} for one in RELEASES},
    **{one.model_digest: {one.weights} for one in RELEASES},
}


def check_survivor(image: Image, root: Path, server: str, promised: Witness, scenario: Scenario) -> None:
    """The shipped code starts on it, keeps every promise, and comes to the scenario's end."""
    lay_out(image, root)
    durable.calls = RecordedDisk(root, Witness)  # does not really sync: a hundred times quicker
    folder = StateFolder(root / "state")
    check_files(folder)
    check_record(folder, promised)
    PoweredDevice(root, server, Witness(numbers=set(promised.numbers))).run(*scenario.phases)
    check_files(folder)


def check_files(folder: StateFolder) -> None:
    """Whatever has its name under `blobs/` and `manifests/` is whole, and so is all that a manifest names."""
    stored, described = _named(folder.blobs), _named(folder.manifests)
    for name, path in stored:
        assert path.read_bytes() == BLOBS[name], f"blob {name} is not whole"
    for name, path in described:
        assert path.read_bytes() == MANIFESTS[name], f"manifest {name} is not whole"
    there = {name for name, _ in (*stored, *described)}
    for name, _ in described:
        assert there >= NEEDED[name], f"{name} is not all there: {NEEDED[name] - there}"


def check_record(folder: StateFolder, promised: Witness) -> None:
    """It reads, it is the last that was saved or the one being saved, and what its slots name is whole."""
    with RecordFile(folder) as records:
        found = records.load()
    assert found in (promised.saved, *promised.perhaps) or (promised.saved is None and _is_first(found)), (
        "the record went back behind a save that returned"
    )
    assert all(number < found.number for number in promised.numbers), "a report's number would be used twice"
    for digest in needed_slots(found.pipeline(PIPELINE)):
        assert blobs.damaged(folder, digest) == [], f"a slot names {digest}, which is not whole"


def _is_first(record: Record) -> bool:
    return record == Record(incarnation=record.incarnation)


def _named(folder: Path) -> list[tuple[str, Path]]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(f"sha256:{path.name}", path) for path in files if not path.name.startswith(".partial-")]
