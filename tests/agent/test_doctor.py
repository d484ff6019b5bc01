"""What `doctor` makes of clock, disk and record: each on the real thing, spoiled."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.commands import around, within
from holdfast_agent.commands.told import Finding
from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord, Record, State, StoredDocument
from holdfast_agent.edge.identity import Identity
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable
from holdfast_shared.assign import Target
from support import digits_models, installed_release, playbook

DAY_US = 86_400 * playbook.SECOND
MIB = 1024**2


def now_us() -> int:
    return time.time_ns() // 1000


def identity(*, issued_at: int) -> Identity:
    member = msgspec.structs.replace(playbook.membership(), issued_at=issued_at)
    return Identity(playbook.authorities(), member, playbook.DIRECTOR)


def assigned(*, not_after: int) -> Record:
    document = playbook.assignment(playbook.rule("1"), seq=1, not_after=not_after)
    stored = StoredDocument(
        scope="region/eu", pipeline="p", epoch=1, seq=1, payload_digest="", envelope=playbook.signed(document)
    )
    return Record(incarnation="0" * 16, documents=(stored,))


def test_a_clock_behind_what_was_signed_is_wrong_and_says_what_still_works() -> None:
    """As after a boot without a battery: 1970, or last week."""
    found = within.clock(identity(issued_at=now_us() + DAY_US), None)
    assert (found.state, "rolls back without a clock" in found.do) == ("fail", True)
    assert within.clock(identity(issued_at=now_us() - DAY_US), None).state == "ok"
    assert within.clock(identity(issued_at=now_us() + 60 * playbook.SECOND), None).state == "ok", (
        "a signer's may be ahead"
    )


def test_an_assignment_that_has_expired_is_an_old_server_or_a_wrong_clock() -> None:
    known = identity(issued_at=0)
    found = within.clock(known, assigned(not_after=now_us() - DAY_US))
    assert (found.state, "region/eu" in found.said) == ("warn", True)
    assert within.clock(known, assigned(not_after=now_us() + DAY_US)).state == "ok"


def test_a_record_of_which_a_half_is_torn_is_told_and_one_of_none_is_a_failure(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    saved = Record(incarnation="0" * 16, boots=3)
    assert within.record_of(folder)[1].state == "warn", "no agent ever ran"
    for _ in range(2):
        durable.DoubledFile(folder.record).write(record.encode(saved))
    assert within.record_of(folder) == (
        saved,
        Finding(check="record", state="ok", said="nothing serves; the agent started 3 time(s)"),
    )
    for half, state in ((".a", "warn"), (".b", "fail")):
        path = folder.record.with_name("record" + half)
        durable.write_file(path, path.read_bytes()[:80])
        found = within.record_of(folder)[1]
        assert (found.state, bool(found.do)) == (state, True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m,nr_inodes=5000", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root alone, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_is_too_small_before_a_fetch_finds_out(small_disk: Path) -> None:
    """Room is asked for three releases of the size that is here, beside what is always left free: also before the second."""
    folder = StateFolder(small_disk)
    assert within.disk(folder, None).state == "ok"
    large = digits_models.trained() + bytes(3 * MIB)  # nothing runs it: its size is what counts
    ref = installed_release.install(folder, "p", "1.0.0", large, golden=b"[]")
    one = Record(incarnation="0" * 16, pipelines={"p": PipelineRecord(current=Target(release=ref))})
    found = within.disk(folder, one)
    assert (found.state, "38 MiB" in found.said) == ("warn", True), "37 MiB are free; 32 and twice 3 are wanted"
    slots = PipelineRecord(current=Target(release=ref), previous=Target(release=ref))
    two = Record(incarnation="0" * 16, pipelines={"p": slots})
    assert within.disk(folder, two).state == "ok", "the third alone is still to come"
    tried = msgspec.structs.replace(slots, state=State.TRIAL, candidate=Target(release=ref))
    on_trial = Record(incarnation="0" * 16, pipelines={"p": tried})
    (small_disk / "more").write_bytes(bytes(3 * MIB))
    states = [within.disk(folder, one).state for one in (two, on_trial)]
    assert states == ["warn", "ok"], "on trial, maybe for weeks, the third is here"
    (small_disk / "filled").write_bytes(bytes(8 * MIB))
    found = within.disk(folder, two)
    assert (found.state, "free some space" in found.do) == ("fail", True)


def test_a_full_disk_cannot_be_written_and_nothing_is_left_of_the_attempt(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "filled").write_bytes(bytes(64 * MIB))
    found = within.state_folder(StateFolder(small_disk))
    assert (found.state, "No space left" in found.said) == ("fail", True)
    assert [path.name for path in small_disk.iterdir()] == ["filled"]


def test_a_file_system_that_can_only_be_read_is_a_failure(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = within.state_folder(StateFolder(small_disk))
    assert (found.state, "Read-only" in found.said, "mount it read-write" in found.do) == ("fail", True, True)


def test_a_state_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "none")
    assert (within.state_folder(folder).state, within.disk(folder, None).state) == ("fail", "fail")


@pytest.mark.slow
def test_a_worker_of_this_environment_starts() -> None:
    assert (around.worker().state, around.runtime().state) == ("ok", "ok")


def test_a_worker_whose_words_are_not_ours_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python that is none, and one that ends without a word: a finding, never a crash."""
    for script in ("#!/bin/sh\nexit 0\n", "#!/bin/sh\nprintf xxxxxxxx >&$4\n", None):
        python = tmp_path / "python"
        python.unlink(missing_ok=True)
        if script is not None:
            python.write_text(script)
            python.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(python))
        found = around.worker()
        assert (found.state, bool(found.do)) == ("fail", True), found
