"""A manifest is believed by its digest alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import manifest
from holdfast_shared.errors import Damaged
from holdfast_shared.wire.release import Limits
from support import descriptors
from support.gateway_bench import PIPELINE, installed


def test_limits_and_the_longest_guardrail_window_are_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    target = installed(folder, "1.0.0", limits=Limits(deadline_ms=70), window_s=300)
    facts = manifest.read(folder.manifest(target.release.digest), target.release.digest, PIPELINE)
    assert (facts.limits.deadline_ms, facts.window_s) == (70, 300)


def test_another_release_under_its_name_is_damage(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    one, other = installed(folder, "1.0.0"), installed(folder, "1.1.0")
    path = folder.manifest(one.release.digest)
    path.write_bytes(folder.manifest(other.release.digest).read_bytes())
    with pytest.raises(Damaged, match="another digest"):
        manifest.read(path, one.release.digest, PIPELINE)


def test_one_that_cannot_be_read_for_now_is_no_damage(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    target = installed(folder, "1.0.0")
    with descriptors.none_left(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        manifest.read(folder.manifest(target.release.digest), target.release.digest, PIPELINE)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"payload": "!"}', b'{"payload": "e30="}', b"[" * 100])
def test_what_is_no_manifest_is_damage(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(Damaged):
        manifest.read(tmp_path / "m", "sha256:" + "0" * 64, PIPELINE)


def test_one_that_is_missing_or_of_another_pipeline_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="cannot be read"):
        manifest.read(tmp_path / "none", "sha256:" + "0" * 64, PIPELINE)
    folder = StateFolder(tmp_path)
    target = installed(folder, "1.0.0", pipeline="faces")
    with pytest.raises(Damaged, match="of pipeline faces"):
        manifest.read(folder.manifest(target.release.digest), target.release.digest, PIPELINE)
