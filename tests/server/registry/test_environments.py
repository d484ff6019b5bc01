"""Environments in the registry: write-once, complete before they are registered, every wheel looked at; by each door."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import worker_wheel
from holdfast_cli import environment_toml
from holdfast_server.refusals import TooLarge
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, NotSupported, Untrusted
from holdfast_shared.wire.environment import TYPE, Environment, Settings
from holdfast_shared.wire.release import RELEASE_TYPE
from holdfast_worker import protocol
from support import wheels
from support.running_server import KEYS, SAMPLE, Running, database_url, running_server, server_context
from support.wheels import Packed

replace = msgspec.structs.replace
TIDY = wheels.small("tidy", "1.0", {"tidy/__init__.py": b"ANSWER = 42\n"})
TOML = 'name = "onnx-cpu"\nversion = "1.0.0"\nrequires_python = ">=3.11"\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with (
        database_url("sqlite", tmp_path, None) as url,
        server_context(url, tmp_path) as context,
        running_server(context, tmp_path) as running,
    ):
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A publisher's, with the worker and one more wheel."""
    made = tmp_path / "environment"
    made.mkdir()
    (made / "environment.toml").write_text(TOML)
    worker_wheel.build(made)
    (made / TIDY.filename).write_bytes(TIDY.content)
    return made


def test_an_environment_is_published_listed_shown_and_named_by_a_release(server: Running, folder: Path) -> None:
    done = server.client.holdfast("environment", "publish", folder, key="mira")
    assert done["result"] == "published"
    assert done["uploaded_bytes"] == sum(path.stat().st_size for path in folder.glob("*.whl"))
    again = server.client.holdfast("environment", "publish", folder, key="mira")
    assert (again["result"], again["uploaded_bytes"]) == ("unchanged", 0)
    (listed,) = server.client.holdfast("environment", "list")["environments"]
    assert (listed["name"], listed["version"], listed["digest"]) == ("onnx-cpu", "1.0.0", done["digest"])
    release = folder.parent / "release"
    release.mkdir()
    for file in SAMPLE.iterdir():
        (release / file.name).write_bytes(file.read_bytes())
    text = (release / "release.toml").read_text()
    named = f'version = "1.0.0"\nenvironments = ["{done["digest"]}", "system"]'
    (release / "release.toml").write_text(text.replace('version = "1.0.0"', named, 1))
    server.client.holdfast("publish", release, key="mira")
    shown = server.client.holdfast("environment", "show", "onnx-cpu", "1.0.0")
    assert shown["releases"] == [{"pipeline": "iris", "version": "1.0.0"}]
    assert {one["filename"] for one in shown["manifest"]["wheels"]} == {path.name for path in folder.glob("*.whl")}
    assert shown["manifest"]["worker"]["newest"] == protocol.VERSION
    raw = server.client.ask("GET", f"manifests/{done['digest']}")
    payload = signing.verify(raw.data, TYPE, {KEYS["mira"].public.key_id: KEYS["mira"].public}, size_bytes_max=10**6)
    assert strict_json.decode(payload.payload, Environment, what="e", size_bytes_max=10**6).name == "onnx-cpu"


def test_the_same_folder_gives_the_same_digest(folder: Path) -> None:
    assert environment_toml.build(folder).digest == environment_toml.build(folder).digest


# ---------------------------------------------------------------- bad input by the command
def _spoil(folder: Path, before: str, after: str) -> None:
    text = (folder / "environment.toml").read_text()
    assert before in text
    (folder / "environment.toml").write_text(text.replace(before, after))


def _other_record(folder: Path) -> None:
    content = TIDY.content.replace(b"tidy/__init__.py,sha256=", b"tidy/__init__.py,sha256+")
    (folder / TIDY.filename).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (lambda f: (f / "environment.toml").unlink(), "FOLDER", "cannot read"),
        (lambda f: _spoil(f, "version", "verson"), "version", "did you mean `version`"),
        (lambda f: _spoil(f, "1.0.0", "1.0"), "version", "SemVer"),
        (lambda f: _spoil(f, ">=3.11", "newest"), "requires_python", "PEP 440"),
        (
            lambda f: (f / "environment.toml").write_text(TOML + '[settings.variables]\nLD_PRELOAD = "x"\n'),
            "settings.variables.LD_PRELOAD",
            "may not be set",
        ),
        (lambda f: (f / "environment.toml").write_text(TOML + "[settings]\nthreads = 0\n"), "settings.threads", ">= 1"),
        (lambda f: next(f.glob("holdfast_worker*")).unlink(), "wheels", "scripts/worker_wheel.py"),
        (lambda f: (f / TIDY.filename).write_bytes(b"no zip"), TIDY.filename, "is no wheel"),
        (lambda f: (f / TIDY.filename).rename(f / "tidy.whl"), "tidy.whl", "no wheel's name"),
        (lambda f: (f / TIDY.filename).rename(f / "neat-1.0-py3-none-any.whl"), "neat-1.0-py3-none-any.whl", "RECORD"),
        (_other_record, TIDY.filename, "no wheel"),
        (lambda f: (f / "secret-1-py3-none-any.whl").symlink_to("/etc/hostname"), "secret-1-py3-none-any.whl", "copy it"),
    ],
    ids=["no file", "a misspelt field", "no version", "no specifier", "a variable", "no thread", "no worker", "no zip",
         "no wheel's name", "another name", "another RECORD", "a link"],
)  # fmt: skip
def test_a_bad_folder_is_refused_before_anything_is_sent(
    server: Running, folder: Path, change: Callable[[Path], Any], field: str, words: str
) -> None:
    change(folder)
    before = server.store()
    error = server.client.refused("environment", "publish", folder, key="mira")
    assert field in error.field
    assert words in error.message
    assert server.store() == before


@pytest.mark.parametrize(
    ("words", "key", "code", "field"),
    [
        (("environment", "show", "onnx-cpu", "9.0.0"), "anna", "not-found", "version"),
        (("environment", "show", "other", "1.0.0"), "anna", "not-found", "version"),
    ],
)
def test_what_is_not_published_is_not_found(
    server: Running, words: tuple[str, ...], key: str, code: str, field: str
) -> None:
    error = server.client.refused(*words, key=key)
    assert (error.code, error.field) == (code, field)


def test_a_version_never_changes(server: Running, folder: Path) -> None:
    server.client.holdfast("environment", "publish", folder, key="mira")
    (folder / TIDY.filename).unlink()
    before = server.store()
    error = server.client.refused("environment", "publish", folder, key="mira")
    assert (error.code, error.field) == ("conflict", "version")
    assert server.store() == before


# ---------------------------------------------------------------- bad input past the command
def _made(*more: Packed, key: str = "mira", **changes: Any) -> wheels.Made:
    return wheels.environment(packages=(), more=more, key=KEYS[key], changes=changes)


def _sent(server: Running, made: wheels.Made) -> str:
    """Publish as somebody does who has no command; the last answer's result."""
    registry = server.context.registry
    for digest in registry.publish_environment(made.envelope).missing:
        registry.receive(digest, len(made.blobs[digest]), iter([made.blobs[digest]]))
    return registry.publish_environment(made.envelope).result


def _lying() -> wheels.Made:
    return _made(Packed("neat-1.0-py3-none-any.whl", TIDY.content))


def _of_another_protocol() -> wheels.Made:
    honest = _made().environment
    return _made(worker=replace(honest.worker, newest=honest.worker.newest + 1))


def _larger() -> wheels.Made:
    honest = _made().environment
    return _made(wheels=(replace(honest.wheels[0], unpacked_bytes=1),))


def _of_another_size() -> wheels.Made:
    honest = _made().environment
    return _made(wheels=(replace(honest.wheels[0], size_bytes=honest.wheels[0].size_bytes + 1),))


@pytest.mark.parametrize(
    ("make", "kind", "field"),
    [
        (lambda: _made(key="eve"), Untrusted, "signatures"),
        (lambda: _made(key="anna"), Untrusted, "signatures"),
        (lambda: _made(critical=("teleport",)), NotSupported, "critical"),
        (lambda: _made(requires_python="newest"), Malformed, "requires_python"),
        (lambda: _made(settings=Settings(variables={"PYTHONPATH": "x"})), NotSupported, "settings.variables.PYTHONPATH"),
        (_lying, Malformed, "wheels[1]"),
        (_of_another_protocol, Malformed, "wheels[0]"),
        (_larger, Malformed, "wheels[0]"),
        (_of_another_size, Malformed, "size_bytes"),
    ],
    ids=["a stranger's", "an operator's", "critical", "no specifier", "a variable", "another name's wheel",
         "another protocol", "more than declared", "another size"],
)  # fmt: skip
def test_what_no_device_could_use_is_refused_and_never_registered(
    server: Running, make: Callable[[], wheels.Made], kind: type[HoldfastError], field: str
) -> None:
    made = make()
    with pytest.raises(kind) as caught:
        _sent(server, made)
    assert caught.value.field == field
    assert server.client.get("environments").json == {"environments": []}
    assert server.client.get(f"manifests/{made.digest}").status == 404


def _payload(made: wheels.Made, **changes: Any) -> bytes:
    """Its JSON with other fields, whatever the type says."""
    payload = json.loads(strict_json.encode(made.environment)) | changes
    return json.dumps({name: value for name, value in payload.items() if value is not None}).encode()


def _signed(payload: bytes, kind: str = TYPE) -> bytes:
    return signing.sign(payload, kind, [KEYS["mira"]])


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (lambda: b"", 400, "body"),
        (lambda: b"no json", 400, "body"),
        (lambda: b"{}", 400, "body"),
        (lambda: _signed(_payload(_made()), RELEASE_TYPE), 400, "payloadType"),
        (lambda: _signed(b"[]"), 400, "environment"),
        (lambda: _signed(_payload(_made(), version="1.0")), 400, "version"),
        (lambda: _signed(_payload(_made(), wheels=[])), 400, "wheels"),
        (lambda: _signed(_payload(_made(), worker=None)), 400, "environment"),
        (lambda: _signed(_payload(_made(), worker={"filename": "x-1-py3-none-any.whl", "oldest": 1, "newest": 1})), 400,
         "environment"),
        (lambda: _signed(_payload(_made(), settings={"threads": 1000})), 400, "settings.threads"),
        (lambda: _signed(_payload(_made(), settings={"variables": {"OMP_WAIT_POLICY": "$(reboot)"}})), 400,
         "settings.variables[...]"),
        (lambda: b" " * 10**6, 413, "body"),
    ],
    ids=["empty", "no json", "no envelope", "another type", "no object", "no version", "no wheels", "no worker",
         "a worker's wheel that is not there", "threads", "a value for a shell", "too large"],
)  # fmt: skip
def test_a_bad_body_is_one_clear_error_and_changes_nothing(
    server: Running, body: Callable[[], bytes], status: int, field: str
) -> None:
    before = server.store()
    answer = server.client.ask("POST", "environments", body())
    assert (answer.status, answer.error["field"]) == (status, field), answer.error
    assert server.store() == before


def test_only_what_was_asked_for_is_taken_in(server: Running) -> None:
    made = _made(TIDY)
    registry = server.context.registry
    take = functools.partial(registry.receive, TIDY.digest, len(TIDY.content), iter([TIDY.content]))
    with pytest.raises(Missing):
        take()
    registry.publish_environment(made.envelope)
    with pytest.raises(TooLarge):
        registry.receive(TIDY.digest, len(TIDY.content) + 1, iter([TIDY.content]))
    assert take()


def test_a_release_names_only_environments_that_are_published(server: Running) -> None:
    """And each once. Devices fetch both by digest, so there must be both."""
    server.client.holdfast("publish", SAMPLE, key="mira")
    made, registry = _made(), server.context.registry
    from holdfast_cli import manifests

    release = replace(manifests.build(SAMPLE).release, version="2.0.0", environments=("system", made.digest))
    envelope = signing.sign(strict_json.encode(release), RELEASE_TYPE, [KEYS["mira"]])
    with pytest.raises(Missing) as caught:
        registry.publish_release(envelope)
    assert caught.value.field == "environments[1]"
    assert _sent(server, made) == "made"
    assert registry.publish_release(envelope).result == "made"
    twice = replace(release, version="3.0.0", environments=(made.digest, made.digest))
    with pytest.raises(Malformed, match="twice"):
        registry.publish_release(signing.sign(strict_json.encode(twice), RELEASE_TYPE, [KEYS["mira"]]))


def test_a_wheel_outlives_an_unfinished_publication(server: Running) -> None:
    """What a registered environment names is never swept away with what was begun and never finished."""
    made = _made(TIDY)
    _sent(server, made)
    assert server.context.registry.blobs.has(TIDY.digest)
    with pytest.raises(Conflict):
        _sent(server, _made(description="another"))
