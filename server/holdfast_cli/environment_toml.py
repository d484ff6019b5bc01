"""`environment.toml` and the wheels beside it: what a publisher makes an environment of. Every fault is named at once."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from holdfast_cli import faults
from holdfast_cli.faults import Fault
from holdfast_shared import strict_json, wheel_file
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.identifiers import Digest, NameField, TextField, digest_of
from holdfast_shared.semver import VersionField
from holdfast_shared.wire.environment import VARIABLES, WHEELS_MAX, Environment, Settings, Wheel, WorkerWheel

NAME: Final = "environment.toml"
SIZE_BYTES_MAX: Final = 64 * 1024
_CHUNK: Final = 1024 * 1024
_NEXT: Final = "correct it; see server/holdfast_cli/README.md"


class EnvironmentToml(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. The wheels are all `*.whl` beside it, in the order of their names."""

    name: NameField
    version: VersionField
    requires_python: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    settings: Settings = Settings()
    description: TextField = ""


class Built(NamedTuple):
    """Ready to sign: the payload's bytes, and where each wheel lies."""

    environment: Environment
    payload: bytes
    files: dict[Digest, Path]

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def build(folder: Path) -> Built:
    """Read, hash and check the folder. Raises Malformed or Missing, whose message lists every fault."""
    described = _read(folder)
    found = _faults_of(described)
    files: dict[Digest, Path] = {}
    wheels: list[Wheel] = []
    worker: WorkerWheel | None = None
    for path in sorted(folder.glob("*.whl")):
        try:
            wheel, protocol = _wheel(folder, path)
        except Malformed as error:
            found.append(Fault(path.name, error.message))
            continue
        wheels.append(wheel)
        files[Digest(wheel.digest)] = path
        if wheel_file.is_worker(path.name) and protocol is not None:
            worker = WorkerWheel(filename=path.name, oldest=protocol.oldest, newest=protocol.newest)
    if len(wheels) > WHEELS_MAX:
        found.append(Fault("wheels", f"{len(wheels)} are too many; at most {WHEELS_MAX} are allowed"))
    if worker is None and not found:
        found.append(
            Fault("wheels", "none is the worker's; make one with scripts/worker_wheel.py, and put it beside this file")
        )
    if found or worker is None:
        raise _as_error(found)
    environment = Environment(
        name=described.name,
        version=described.version,
        requires_python=described.requires_python,
        wheels=tuple(wheels),
        worker=worker,
        settings=described.settings,
        description=described.description,
    )
    return Built(environment, strict_json.encode(environment), files)


def _read(folder: Path) -> EnvironmentToml:
    path = folder / NAME
    try:
        with path.open("rb") as stream:
            raw = stream.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}", field="FOLDER", next_step="write one") from error
    if len(raw) > SIZE_BYTES_MAX:
        raise Malformed(f"{path} is larger than {SIZE_BYTES_MAX} bytes", field="FOLDER", next_step=_NEXT)
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"{path} is not TOML: {error}", field=NAME, next_step="correct that line") from error
    found = faults.of_table(table, EnvironmentToml)
    if found:
        raise _as_error(found)
    return msgspec.convert(table, EnvironmentToml)


def _faults_of(described: EnvironmentToml) -> list[Fault]:
    found = []
    try:
        SpecifierSet(described.requires_python)
    except InvalidSpecifier:
        found.append(Fault("requires_python", "write a PEP 440 specifier, such as >=3.11,<3.13"))
    may = ", ".join(sorted(VARIABLES))
    return found + [
        Fault(f"settings.variables.{name}", f"may not be set; use one of {may}")
        for name in sorted(described.settings.variables.keys() - VARIABLES)
    ]


def _wheel(folder: Path, path: Path) -> tuple[Wheel, wheel_file.Protocol | None]:
    """Raises Malformed: also for a link that would publish what lies elsewhere on this machine."""
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise Malformed("is no regular file of this folder; copy it here")
    facts = wheel_file.facts_of(path, path.name)
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    try:
        wheel = msgspec.convert(
            {
                "filename": path.name,
                "digest": "sha256:" + hasher.hexdigest(),
                "size_bytes": size,
                "unpacked_bytes": facts.unpacked_bytes,
            },
            Wheel,
        )
    except msgspec.ValidationError as error:
        raise Malformed(f"cannot be a wheel of an environment: {error}") from error
    return wheel, facts.protocol


def _as_error(found: list[Fault]) -> Malformed:
    if len(found) == 1:
        return Malformed(f"{found[0].words} ({NAME})", field=found[0].path, next_step=_NEXT)
    words = "; ".join(f"{number}) {fault}" for number, fault in enumerate(found, start=1))
    fields = ", ".join(fault.path for fault in found)
    return Malformed(f"{NAME} and its wheels have {len(found)} faults: {words}.", field=fields, next_step=_NEXT)
