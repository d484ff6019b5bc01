"""Fetching a release from a server that is honest, and from every kind that is not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from holdfast_agent.edge import blobs, request
from holdfast_agent.fetch import staging
from holdfast_agent.fetch.manifests import Order
from holdfast_agent.fetch.outcome import Outcome
from holdfast_shared import __version__, durable, signing, strict_json
from holdfast_shared.variants import Machine
from holdfast_shared.wire.release import (
    BLOB_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    MODEL_TYPE,
    Hardware,
    ModelVersion,
)
from support import wheels
from support.fetch_bench import GOOD, PORTAL, WAYS_PATH, WEIGHTS, WEIGHTS_PATH, Bench, begun, ranges
from support.hostile_server import (
    Behaviour,
    cut,
    endless,
    hang_up,
    head,
    honest,
    silent,
    status,
    trickle,
)
from support.installed_release import Published
from support.published import FACES_ONLY, MIRA, STRANGER, Making, publish
from support.wheels import Made


def test_an_honest_server_gives_a_release_that_is_all_there(bench: Bench) -> None:
    assert bench.fetch() == Outcome(ok=True)
    assert blobs.release_of(bench.folder, GOOD.digest) == GOOD.release
    assert list(bench.folder.partial.iterdir()) == [], "nothing is left over"


def test_what_is_complete_needs_no_network(bench: Bench) -> None:
    GOOD.install(bench.folder)
    bench.server.close()
    assert bench.fetch().ok


def test_a_damaged_blob_is_repaired_and_nothing_else_is_fetched(bench: Bench) -> None:
    GOOD.install(bench.folder)
    bench.folder.blob(GOOD.weights).write_bytes(b"spoilt")
    assert bench.fetch().ok
    assert [asked.path for asked in bench.server.requests] == [WAYS_PATH, WEIGHTS_PATH]


@pytest.mark.parametrize("digest", [GOOD.digest, GOOD.model_digest], ids=["release", "model"])
def test_a_damaged_manifest_is_repaired_and_no_blob_is_fetched(bench: Bench, digest: str) -> None:
    GOOD.install(bench.folder)
    bench.folder.manifest(digest).write_bytes(b"{}")
    assert bench.fetch().ok
    assert [asked.path for asked in bench.server.requests] == [f"/api/v1/manifests/{digest}"]


def test_an_agent_that_is_new_enough_stages_a_release_that_says_which_it_needs(bench: Bench) -> None:
    published = publish(making=Making(release={"agent_version_min": __version__}))
    bench.serve(published)
    assert bench.fetch(published, order=Order("digits", "1.0.0", published.digest)).ok


def test_a_second_release_fetches_only_what_differs(bench: Bench) -> None:
    assert bench.fetch().ok
    newer = publish("1.1.0")
    bench.serve(newer)
    bench.server.requests.clear()
    assert bench.fetch(newer).ok
    assert {asked.path for asked in bench.server.requests} == {
        *(f"/api/v1/manifests/{digest}" for digest in newer.manifests),
        f"/api/v1/blobs/{newer.weights}",
        f"/api/v1/blobs/{newer.weights}/transfers",
    }


# In an environment of its own.


TIDY: Final = wheels.small("holdfast_worker", "0.0", {"holdfast_worker/__init__.py": b""})


def in_environment(bench: Bench, one: Made, **order: Any) -> tuple[Published, Order]:
    """A release that was validated in it, both on the server."""
    published = publish(making=Making(release={"environments": (one.digest, "system")}))
    bench.serve(published)
    bench.server.on(f"/api/v1/manifests/{one.digest}", honest(one.envelope, f'"{one.digest}"'))
    for digest, content in one.blobs.items():
        bench.server.on(f"/api/v1/blobs/{digest}", honest(content, f'"{digest}"'))
    return published, Order("digits", "1.0.0", published.digest, one.digest)


def test_a_release_comes_with_its_environment_which_is_then_kept_whole(bench: Bench) -> None:
    """Once it is here: what rotted is built again without any network."""
    one = wheels.environment(packages=(), worker_packed=TIDY, key=MIRA)
    published, order = in_environment(bench, one)
    assert bench.fetch(published, order=order).ok
    assert blobs.damaged(bench.folder, one.digest) == []
    assert list(bench.folder.partial.iterdir()) == []
    next(bench.folder.environment(one.digest).rglob("holdfast_worker/__init__.py")).write_bytes(b"rotten")
    assert blobs.damaged(bench.folder, one.digest) == [one.digest]
    bench.server.close()
    assert bench.fetch(published, order=order).ok
    assert blobs.damaged(bench.folder, one.digest) == []


def test_space_is_planned_for_what_is_built(bench: Bench) -> None:
    one = wheels.environment(packages=(), worker_packed=TIDY, key=MIRA, changes={"requires_python": ">=3"})
    unpacked = msgspec.structs.replace(TIDY.described(), unpacked_bytes=2 * 1024**3)
    big = wheels.environment(packages=(), worker_packed=TIDY, key=MIRA, changes={"wheels": (unpacked,)})
    published, order = in_environment(bench, big)
    assert bench.fetch(published, order=order, free=lambda _: 2**31).code == "no-space"
    assert ranges(bench) == []
    published, order = in_environment(bench, one)
    assert bench.fetch(published, order=order, free=lambda _: 2**31).ok


@pytest.mark.parametrize(
    ("details", "code", "named"),
    [
        ({"key": STRANGER}, "fetch-untrusted", "signatures"),
        ({"key": MIRA, "changes": {"requires_python": "<3"}}, "unfit", "requires_python"),
        ({"key": MIRA, "changes": {"critical": ("teleport",)}}, "not-supported", "critical"),
    ],
    ids=["a stranger's", "for another Python", "critical"],
)
def test_an_environment_that_may_not_or_cannot_be_used_is_refused_before_any_blob(
    bench: Bench, details: dict[str, Any], code: str, named: str
) -> None:
    published, order = in_environment(bench, wheels.environment(packages=(), worker_packed=TIDY, **details))
    ended = bench.fetch(published, order=order)
    assert ended.code == code
    assert named in ended.detail
    assert not any("/blobs/" in asked.path for asked in bench.server.requests)
    assert not bench.folder.environments.exists()


# What the manifests may get wrong.


@pytest.mark.parametrize(
    ("making", "code", "named"),
    [
        (Making(signer=STRANGER), "fetch-untrusted", "signatures"),
        (Making(signer=FACES_ONLY), "fetch-untrusted", "signatures"),
        (Making(model_signer=STRANGER), "fetch-untrusted", "signatures"),
        (Making(release={"version": "1.0.1"}), "fetch-damaged", "version"),
        (Making(release={"pipeline": "faces"}), "fetch-damaged", "pipeline"),
        (Making(model={"version": "1.0.1"}), "fetch-damaged", "stages[0].model.version"),
        (Making(model={"name": "other"}), "fetch-damaged", "stages[0].model.name"),
        (Making(release={"critical": ("teleport",)}), "not-supported", "critical"),
        (Making(model={"critical": ("teleport",)}), "not-supported", "critical"),
        (Making(release={"environments": ("sha256:" + "a" * 64,)}), "not-supported", "not validated in"),
        (Making(release={"agent_version_min": "99.0.0"}), "not-supported", "an agent of version 99.0.0"),
        (Making(variant={"runtime": "python"}), "unfit", "runtime python"),
        (Making(hardware=Hardware(architectures=("riscv64", "armv7l"))), "unfit", "armv7l"),
        (Making(hardware=Hardware(accelerators=("coral",))), "unfit", "coral"),
        (Making(hardware=Hardware(memory_bytes_min=2**50)), "unfit", "memory"),
    ],
)
def test_a_release_that_may_not_or_cannot_run_here_is_refused_before_any_blob(
    bench: Bench, making: Making, code: str, named: str
) -> None:
    published = publish(making=making)
    bench.serve(published)
    ended = bench.fetch(published, order=Order("digits", "1.0.0", published.digest))
    assert ended.code == code
    assert named in ended.detail
    assert not any("/blobs/" in asked.path for asked in bench.server.requests)
    assert not bench.folder.manifest(published.digest).exists()


def test_critical_fields_that_are_known_are_no_obstacle(bench: Bench) -> None:
    published = publish(making=Making(release={"critical": ("guardrails", "limits")}))
    bench.serve(published)
    assert bench.fetch(published).ok


def test_an_architecture_has_several_names(bench: Bench) -> None:
    published = publish(making=Making(hardware=Hardware(architectures=("arm64",))))
    bench.serve(published)
    assert bench.fetch(published, machine=Machine("aarch64", 2**30, frozenset({"onnx"}))).ok


def test_another_manifest_than_the_one_asked_for_is_damage(bench: Bench) -> None:
    """A server that answers with another release, as well signed as it may be, is found out by the digest."""
    other = publish(making=Making(release={"description": "of the same version, and signed"}))
    bench.server.on(f"/api/v1/manifests/{GOOD.digest}", honest(other.manifests[other.digest]))
    ended = bench.fetch()
    assert ended.code == "fetch-damaged"
    assert other.digest in ended.detail


def test_a_manifest_whose_publisher_may_no_longer_publish_is_asked_for_again(bench: Bench) -> None:
    """The same payload may have been signed anew; until it was, what lies here is not trusted."""
    withdrawn = publish(making=Making(signer=STRANGER))
    withdrawn.install(bench.folder)
    bench.serve(withdrawn)
    assert bench.fetch(withdrawn).code == "fetch-untrusted"
    assert withdrawn.digest == GOOD.digest
    bench.serve(GOOD)
    assert bench.fetch().ok
    assert bench.folder.manifest(GOOD.digest).read_bytes() == GOOD.manifests[GOOD.digest]


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (status(404), "fetch-refused"),
        (status(500), "fetch-refused"),
        (status(302, Location="http://169.254.0.1/"), "fetch-refused"),
        (status(200, PORTAL, Content_Type="text/html"), "fetch-damaged"),
        (status(200, b""), "fetch-damaged"),
        (cut(GOOD.manifests[GOOD.digest], 100), "fetch-unreachable"),
        (endless, "fetch-damaged"),
        (silent, "fetch-too-slow"),
        (trickle(head(200, X="y" * 2000), 0.1), "fetch-too-slow"),
        (hang_up, "fetch-unreachable"),
    ],
    ids=["404", "500", "redirect", "portal", "empty", "cut", "endless", "silent", "trickled headers", "closed"],
)
def test_whatever_answers_for_a_manifest_is_one_stable_code(bench: Bench, behaviour: Behaviour, code: str) -> None:
    bench.server.on(f"/api/v1/manifests/{GOOD.digest}", behaviour)
    assert bench.fetch(deadline_s=2.0).code == code


def test_nobody_there_is_unreachable(bench: Bench) -> None:
    bench.server.close()
    assert bench.fetch().code == "fetch-unreachable"


def test_what_the_server_asks_for_is_told(bench: Bench) -> None:
    bench.server.on(f"/api/v1/manifests/{GOOD.digest}", status(503, Retry_After="120"))
    assert bench.fetch().retry_after_s == 120
    bench.server.on(f"/api/v1/manifests/{GOOD.digest}", status(429, Retry_After="999999999999"))
    assert bench.fetch().retry_after_s == request.RETRY_AFTER_S_MAX
    bench.server.on(f"/api/v1/manifests/{GOOD.digest}", status(503, Retry_After="soon"))
    assert bench.fetch().retry_after_s is None


# Space.


def test_a_full_disk_is_known_before_a_blob_is_fetched(bench: Bench) -> None:
    ended = bench.fetch(free=lambda _: staging.RESERVE_BYTES + len(WEIGHTS))
    assert ended.code == "no-space"
    assert ranges(bench) == []
    small = sum(map(len, GOOD.blobs.values()))
    assert bench.fetch(free=lambda _: staging.RESERVE_BYTES + small).ok, "exactly enough is enough"


def test_what_is_here_already_needs_no_room(bench: Bench) -> None:
    begun(bench, WEIGHTS[:200_000])
    needed = sum(map(len, GOOD.blobs.values())) - 200_000
    assert bench.fetch(free=lambda _: staging.RESERVE_BYTES + needed).ok
    assert bench.fetch(free=lambda _: 0).ok, "complete"


def test_a_disk_that_fills_up_on_the_way_is_no_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = durable.append_and_sync, 0

    def filling_up(path: Path, data: bytes) -> None:
        nonlocal written
        written += len(data)
        if written > 150_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(durable, "append_and_sync", filling_up)
    assert bench.fetch().code == "no-space"
    monkeypatch.undo()
    assert bench.fetch().ok


def test_a_release_of_an_absurd_size_is_no_space(bench: Bench) -> None:
    payload = signing.unverified_payload(
        GOOD.manifests[GOOD.model_digest], MODEL_TYPE, size_bytes_max=ENVELOPE_BYTES_MAX
    )
    model = strict_json.decode(payload, ModelVersion, what="model", size_bytes_max=ENVELOPE_BYTES_MAX)
    huge = replace(model.variants[0].files[0], digest="sha256:" + "a" * 64, size_bytes=BLOB_BYTES_MAX)
    published = publish(making=Making(variant={"files": (huge,)}))
    bench.serve(published)
    ended = bench.fetch(published, free=lambda _: 2**30)
    assert ended.code == "no-space"
    assert "are needed" in ended.detail


# Killed anywhere: broken off at every write, and begun again.


@pytest.mark.parametrize("name", ["append_and_sync", "write_file", "rename_into_place", "remove"])
def test_broken_off_at_any_write_it_ends_well_at_the_next_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real: Callable[..., None] = getattr(durable, name)
    for allowed in range(12):
        left = allowed

        def breaking_off(*arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise OSError(errno.EIO, "broken off")
            left -= 1
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(durable, name, breaking_off)
            broken = bench.fetch()
        assert bench.fetch().ok
        blobs.collect_garbage(bench.folder, set())
        if broken.ok:
            return
    raise AssertionError("it never came through")


def test_two_fetches_take_turns(bench: Bench) -> None:
    with blobs.exclusive(bench.folder, wait_s=0):
        assert bench.fetch(deadline_s=0.3).code == "fetch-too-slow"
    assert bench.fetch().ok


def test_a_turn_says_what_was_asked(bench: Bench) -> None:
    """No device name, no key, no credential leaves in a request: it asks for digests."""
    assert bench.fetch().ok
    for asked in bench.server.requests:
        assert set(asked.headers) <= {"host", "accept-encoding", "range", "if-range"}
        assert asked.headers["accept-encoding"] == "identity"
