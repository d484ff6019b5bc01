"""What is on disk: a release that may serve is all there; garbage is what no kept release names, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent.edge import blobs
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable
from support import wheels
from support.installed_release import Published
from support.published import Making, publish

ONE, TWO, THREE = publish("1.0.0"), publish("1.1.0"), publish("1.2.0")
Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    for release in (ONE, TWO):
        release.install(made)
    durable.make_folder(made.partial)
    return made


def everything(folder: StateFolder) -> set[Path]:
    return {path for path in folder.root.rglob("*") if path.is_file() and path != folder.fetch_lock}


def test_an_environment_is_kept_as_long_as_something_names_it(folder: StateFolder) -> None:
    """With its wheels and what was built of them; then all of it goes, and the releases stay."""
    tidy = wheels.small("holdfast_worker", "0.0", {"holdfast_worker/__init__.py": b""})
    one = wheels.environment(packages=(), worker_packed=tidy)
    before = everything(folder)
    one.install(folder)
    environment = folder.environment(one.digest)
    (environment / "lib").mkdir(parents=True)
    (environment / "lib" / "file").write_bytes(b"built")
    (environment / "lib" / "link").symlink_to("file")
    partial = folder.environments / ".partial-of-a-killed-build"
    partial.mkdir()
    there = everything(folder)
    blobs.collect_garbage(folder, {ONE.digest, TWO.digest, one.digest})
    assert everything(folder) == there
    assert not partial.exists()
    blobs.collect_garbage(folder, {ONE.digest, TWO.digest})
    assert everything(folder) == before
    assert list(folder.environments.iterdir()) == []


def test_a_release_is_found_by_its_digest(folder: StateFolder) -> None:
    assert blobs.release_of(folder, ONE.digest) == ONE.release
    assert blobs.release_of(folder, THREE.digest) is None
    models = blobs.models_of(folder, ONE.release)
    assert models is not None
    assert models[0].version == "1.0.0"


def test_a_manifest_under_another_digest_is_not_that_release(folder: StateFolder) -> None:
    folder.manifest(THREE.digest).write_bytes(ONE.manifests[ONE.digest])
    assert blobs.release_of(folder, THREE.digest) is None
    assert blobs.release_of(folder, ONE.model_digest) is None, "a model is no release"


def test_a_whole_release_has_no_damage(folder: StateFolder) -> None:
    assert blobs.damaged(folder, ONE.digest) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "empty", "short", "a byte differs", "a folder"],
)
def test_whatever_is_spoilt_is_named(folder: StateFolder, spoil: Spoil) -> None:
    spoil(folder.blob(ONE.weights))
    assert blobs.damaged(folder, ONE.digest) == [ONE.weights]
    assert blobs.damaged(folder, TWO.digest) == [], "another release does not suffer from it"
    spoil(folder.manifest(TWO.model_digest))
    assert blobs.damaged(folder, TWO.digest) == [TWO.model_digest]
    spoil(folder.manifest(ONE.digest))
    assert blobs.damaged(folder, ONE.digest) == [ONE.digest]


def test_garbage_is_what_no_kept_release_names(folder: StateFolder) -> None:
    THREE.install(folder)
    before = everything(folder)
    assert blobs.collect_garbage(folder, {ONE.digest, THREE.digest}) == 3  # two manifests and the weights
    gone = before - everything(folder)
    assert gone == {folder.manifest(TWO.digest), folder.manifest(TWO.model_digest), folder.blob(TWO.weights)}
    assert blobs.damaged(folder, ONE.digest) == blobs.damaged(folder, THREE.digest) == []
    assert blobs.collect_garbage(folder, {ONE.digest, THREE.digest}) == 0, "it may be repeated"


def test_stale_partials_and_leftovers_go_and_those_of_a_kept_target_stay(folder: StateFolder) -> None:
    for digest, envelope in THREE.manifests.items():
        folder.partial_manifest(digest).write_bytes(envelope)
    kept = [folder.partial_blob(THREE.weights), folder.partial_blob(THREE.weights).with_suffix(".etag")]
    stale = [folder.partial / ("ab" * 32), folder.partial / f"manifest-{'cd' * 32}", folder.blobs / ".partial-x-1234"]
    for path in kept + stale:
        path.write_bytes(b"some")
    already = folder.blob(THREE.weights)
    already.write_bytes(b"a blob of a fetch that is not done")
    assert blobs.collect_garbage(folder, {ONE.digest, TWO.digest, THREE.digest}) == len(stale)
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in [*kept, already, *map(folder.partial_manifest, THREE.manifests)])
    blobs.collect_garbage(folder, {ONE.digest, TWO.digest})
    assert not any(path.exists() for path in [*kept, already, *map(folder.partial_manifest, THREE.manifests)])


@pytest.mark.parametrize("spoilt", [ONE.digest, ONE.model_digest], ids=["release", "model"])
def test_nothing_is_deleted_while_a_kept_manifest_cannot_be_read(folder: StateFolder, spoilt: str) -> None:
    folder.manifest(spoilt).write_bytes(b"{}")
    before = everything(folder)
    assert blobs.collect_garbage(folder, {ONE.digest}) == 0
    assert everything(folder) == before


def test_a_kept_release_that_is_not_here_yet_holds_nothing_back(folder: StateFolder) -> None:
    assert blobs.collect_garbage(folder, {ONE.digest, THREE.digest}) == 3
    assert blobs.damaged(folder, ONE.digest) == []


def test_nothing_is_deleted_while_a_fetch_is_at_work(folder: StateFolder) -> None:
    with blobs.exclusive(folder, wait_s=0) as held:
        assert held
        assert blobs.collect_garbage(folder, set()) == 0
    assert blobs.collect_garbage(folder, set()) > 0
    assert everything(folder) == set()


def test_killed_in_the_middle_no_manifest_is_left_without_what_it_names(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection is broken off after each deletion in turn."""
    releases: tuple[Published, ...] = (ONE, TWO, publish("2.0.0", Making(size_bytes=10)))
    remove = durable.remove
    for allowed in range(9):
        for release in releases:
            release.install(folder)
        left = allowed

        def breaking_off(path: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            remove(path)

        monkeypatch.setattr(durable, "remove", breaking_off)
        with pytest.raises(KeyboardInterrupt):
            blobs.collect_garbage(folder, set())
        monkeypatch.setattr(durable, "remove", remove)
        for release in releases:
            if folder.manifest(release.digest).exists():
                assert blobs.damaged(folder, release.digest) == []
