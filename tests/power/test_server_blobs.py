"""What a server that was killed named and did not sync: the next one relies on it, so it must be durable by then."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_server.registry.blobs import FolderBlobs
from holdfast_shared import durable
from holdfast_shared.identifiers import digest_of, hex_of
from support.recorded_disk import Medium, PowerCut, RecordedDisk

BLOB = b"weights" * 100
DIGEST = digest_of(BLOB)


def test_a_blob_that_the_registry_has_after_a_restart_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the rename and its sync; `has` then says yes, and a manifest may be registered on its word."""

    def killed_after_the_rename(_: int, call: str) -> None:
        if call == "fsync" and (tmp_path / "sha256" / hex_of(DIGEST)).exists():
            raise PowerCut

    store = FolderBlobs(tmp_path)
    received = store.receive(DIGEST, len(BLOB), [BLOB])
    disk = RecordedDisk(tmp_path, lambda: None, before=killed_after_the_rename)
    monkeypatch.setattr(durable, "calls", disk)
    try:
        store.keep(received, DIGEST)
    except PowerCut:
        disk.close_all()
    disk.before = lambda _, __: None
    assert FolderBlobs(tmp_path).has(DIGEST)
    medium = Medium.of(disk)
    for operation in disk.operations:
        medium.take(operation)
    assert medium.durable[Path("sha256") / hex_of(DIGEST)] == BLOB
