"""The command as a person meets it: help, keys, one clear line for each mistake, exit codes, JSON. Without a server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast_shared import reference, signing, strict_json
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.command import ENVELOPE_BYTES_MAX, TYPE, Command, Rollback

pytestmark = pytest.mark.slow

# The discard port: nothing listens there.
NOWHERE = "http://127.0.0.1:9"


def holdfast(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast_cli.main", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert not done.stdout
    error: dict[str, Any] = json.loads(done.stderr)["error"]
    return error


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("publish",),
        ("key",),
        ("key", "new"),
        ("release", "compare"),
        ("reference", "make"),
        ("device", "enrol"),
        ("rollout", "plan"),
        ("rollout", "watch"),
        ("rollback",),
        ("approve",),
    ],
    ids=" ".join,
)
def test_help_is_there_for(words: tuple[str, ...]) -> None:
    done = holdfast(*words, "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_version_is_that_of_the_distribution() -> None:
    assert holdfast("--version").stdout.startswith("holdfast, version ")


def test_a_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "anna.pem"
    made = json.loads(holdfast("key", "new", file, "--json").stdout)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = PrivateKey.from_pem(file.read_bytes())
    assert made["key_id"] == key.public.key_id
    assert made["public_key"] == key.public.to_text()
    before = file.read_bytes()
    again = holdfast("key", "new", file)
    assert again.returncode == 2
    assert "FILE: " in again.stderr
    assert "Next: choose another name" in again.stderr
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert json.loads(holdfast("key", "show", file, "--json").stdout) == made
    assert json.loads(holdfast("--key", file, "--json", "key", "show").stdout) == made


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "anna.pem"
    file.write_text("hello")
    error = error_of(holdfast("rollout", "start", "ro-1", "--key", file, "--json"))
    assert error["field"] == "--key"
    assert str(file) in error["message"]


def test_an_error_is_one_line_with_field_and_next_step(folder: Path) -> None:
    (folder / "release.toml").write_text('pipeline = "iris"\n')
    done = holdfast("publish", folder, "--dry-run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("holdfast: version, self_test, guardrails, trial, model: release.toml has 5 faults")
    assert "Next: correct them all" in done.stderr


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("rollback", "digits", "1.3.0", "--reason", "x", "--segment", "region:eu"), "--segment"),
        (("rollback", "digits", "1.3", "--reason", "x"), "version"),
        (("rollback", "Digits", "1.3.0", "--reason", "x"), "pipeline"),
        (("rollback", "digits", "1.3.0", "--reason", ""), "reason"),
        (("rollout", "plan", "digits", "1.3.0", "--wave", "5"), "--wave"),
        (("rollout", "start", "RO 1"), "rollout"),
        (("device", "list", "region in eu-west"), "SEGMENT"),
        (("fleet", "--server", "localhost"), "--server"),
    ],
)
def test_a_typo_is_told_before_anything_is_asked_of_the_server(
    tmp_path: Path, words: tuple[str, ...], field: str
) -> None:
    key = tmp_path / "anna.pem"
    key.write_bytes(PrivateKey.generate().to_pem())
    done = holdfast("--key", key, "--server", NOWHERE, "--json", *words)
    assert done.returncode == 2
    error = error_of(done)
    assert error["field"] == field
    assert error["next"]


def test_a_server_that_does_not_answer_is_exit_code_1() -> None:
    done = holdfast("fleet", "--server", NOWHERE)
    assert done.returncode == 1
    assert "--server: no answer from http://127.0.0.1:9" in done.stderr
    assert "Next: check that holdfast-server runs there" in done.stderr


def test_a_broker_that_does_not_answer_is_exit_code_1(tmp_path: Path) -> None:
    key = tmp_path / "anna.pem"
    key.write_bytes(PrivateKey.generate().to_pem())
    done = holdfast(
        "rollback", "digits", "1.3.0", "--reason", "x", "--key", key, "--fleet", "demo", "--mqtt", "mqtt://127.0.0.1:9", "--json"
    )  # fmt: skip
    assert done.returncode == 1
    assert error_of(done)["field"] == "--mqtt"


def test_a_rollback_can_be_written_with_both_signatures(tmp_path: Path) -> None:
    """The file holds the very bytes that the MQTT topic takes; no server is needed to make it."""
    keys = [PrivateKey.generate(), PrivateKey.generate()]
    files = [tmp_path / "anna.pem", tmp_path / "ben.pem"]
    for key, file in zip(keys, files, strict=True):
        file.write_bytes(key.to_pem())
    signed = tmp_path / "rollback.json"
    done = holdfast(
        "rollback", "digits", "1.3.0", "--segment", "region=eu-west", "--reason", "wrong totals", "--fleet", "demo",
        "--key", files[0], "--approve-key", files[1], "--output", signed, "--server", NOWHERE, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = {key.public.key_id: key.public for key in keys}
    verified = signing.verify(signed.read_bytes(), TYPE, known, size_bytes_max=ENVELOPE_BYTES_MAX, threshold=2)
    command = strict_json.decode(verified.payload, Command, what="command", size_bytes_max=ENVELOPE_BYTES_MAX)
    assert command.fleet == "demo"
    assert isinstance(command.act, Rollback)
    assert command.act.segment[0].values == ("eu-west",)
    assert command.not_after - command.issued_at == 300 * 1_000_000


def test_what_signs_says_when_no_key_is_given() -> None:
    done = holdfast("rollout", "start", "ro-1", "--server", NOWHERE)
    assert done.returncode == 2
    assert "holdfast: --key: " in done.stderr
    assert "HOLDFAST_KEY" in done.stderr


def test_a_reference_is_made_from_a_sample_and_published_with_a_release(tmp_path: Path) -> None:
    """What it prints is what `reference = "…"` takes; a sample that says nothing is refused by name."""
    feature = {"name": "ink", "tensor": "request.image", "reduce": "mean"}
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"features": [{**feature, "values": [n / 7 for n in range(500)]}]}))
    made = holdfast("reference", "make", sample)
    assert made.returncode == 0, made.stderr
    (ink,) = reference.read(made.stdout.encode()).features
    assert (ink.name, ink.of_request, ink.counts) == ("ink", "image", (50,) * 10)
    sample.write_text(json.dumps({"features": [{**feature, "values": [1.0] * 500}]}))
    refused = error_of(holdfast("--json", "reference", "make", sample))
    assert refused["field"] == "features[0]"
    assert "all values are the same" in refused["message"]
