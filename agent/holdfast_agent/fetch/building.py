"""An environment, from its wheels on this disk to a folder that a worker runs from. No network, and nothing of it is run.

- A virtual environment without pip of an interpreter that fits, then each wheel unpacked by its RECORD. Entry points make no
  scripts, and none of the wheels' code runs before a worker does, confined.
- Built beside its place, listed by hash, synced, and renamed: a folder with an environment's name is complete.
- Its byte code is compiled here and never checked against its source, as the folder is not written to afterwards.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import installer
from installer.destinations import SchemeDictionaryDestination
from installer.exceptions import InstallerError
from installer.records import RecordEntry
from installer.sources import WheelFile
from installer.utils import Scheme
from packaging import tags
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from holdfast_agent.edge import environments
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.reading import hash_of_stream
from holdfast_agent.fetch.outcome import Failed
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared import durable
from holdfast_shared.errors import NotSupported
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import hex_of
from holdfast_shared.wire.environment import VARIABLES, Environment, Wheel
from holdfast_worker import protocol

# Newer first, after the agent's own. An interpreter that is not on the path is not offered.
PYTHONS: Final = tuple(f"python3.{minor}" for minor in range(16, 10, -1))
ASK_S: Final = 20.0
# Compiling the largest set of packages we know takes a minute on a small device.
STEP_S: Final = 900.0
ENTRIES_MAX: Final = 100_000
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.\d+")
_UNWRITTEN: Final = ("scripts", "headers")

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`version` as it says itself, such as `3.11.7`."""

    path: str
    version: str

    @property
    def tags(self) -> frozenset[tags.Tag]:
        """What wheels it can use."""
        found = _VERSION.match(self.version)
        assert found is not None
        minor = (int(found[1]), int(found[2]))
        name = f"cp{minor[0]}{minor[1]}"
        return frozenset((*tags.cpython_tags(minor), *tags.compatible_tags(minor, name)))


def interpreter_for(environment: Environment) -> Interpreter:
    """The first interpreter here that the environment asks for and that can use all its wheels.

    Asked before a wheel is fetched. Raises Failed `unfit`, or NotSupported for what this agent does not know.
    """
    _check_supported(environment)
    try:
        wanted = SpecifierSet(environment.requires_python)
    except InvalidSpecifier as error:
        raise NotSupported(
            str(error), field="requires_python", next_step="publish it with a PEP 440 specifier"
        ) from error
    why: list[str] = []
    for one in _interpreters():
        wheel = _unusable(environment, one)
        if not wanted.contains(one.version, prereleases=True):
            why.append(f"{one.version} is not {environment.requires_python}")
        elif wheel:
            why.append(f"{one.version} cannot use {wheel}")
        else:
            return one
    raise Failed(
        FailureCode.UNFIT,
        f"no Python here fits the environment {environment.name}: {', '.join(why)}",
        field="wheels" if "cannot use" in "".join(why) else "requires_python",
    )


def build(
    folder: StateFolder, digest: str, environment: Environment, interpreter: Interpreter, deadline: Deadline
) -> None:
    """Have it built under `environments/`, in place of one that is damaged. May be repeated.

    Its wheels are on this disk and verified. Raises Failed or OSError.
    """
    durable.make_folder(folder.environments)
    durable.remove_leftovers(folder.environments)
    durable.remove_folder(folder.environment(digest))
    under_way = folder.environments / f".partial-{hex_of(digest)}"
    try:
        _run([interpreter.path, "-I", "-m", "venv", "--without-pip", "--symlinks", str(under_way)], deadline)
        (packages,) = under_way.glob("lib/python*/site-packages")
        for wheel in environment.wheels:
            _unpack(folder, wheel, under_way, packages)
            deadline.left_s()
        _compile(under_way, packages, folder.environment(digest), deadline)
        environments.write_list(under_way)
    except BaseException:
        durable.remove_folder(under_way)
        raise
    durable.move_folder_into_place(under_way, folder.environment(digest))
    log.info("environment %s %s is built with Python %s", environment.name, environment.version, interpreter.version)


def _check_supported(environment: Environment) -> None:
    unknown = sorted(set(environment.critical) - set(Environment.__struct_fields__))
    variables = sorted(environment.settings.variables.keys() - VARIABLES)
    worker = environment.worker
    for wrong, field in (
        (f"calls {', '.join(unknown)[:200]} critical, which this agent does not know" if unknown else "", "critical"),
        (f"sets {', '.join(variables)}, which may not be set here" if variables else "", "settings.variables"),
        (
            f"has a worker that speaks versions {worker.oldest} to {worker.newest} of the protocol; this device speaks "
            f"{protocol.OLDEST} to {protocol.VERSION}"
            if protocol.agreed(worker.oldest, worker.newest) is None
            else "",
            "worker",
        ),
    ):
        if wrong:
            raise NotSupported(f"environment {environment.name} {wrong}", field=field, next_step="update the agent")


def _interpreters() -> Iterator[Interpreter]:
    """The agent's own, then what the path has, each once."""
    own = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    found: set[Path] = set()
    for path in (own, *(shutil.which(name) for name in PYTHONS), shutil.which("python3", path="/usr/bin")):
        if path is None or (real := Path(path).resolve()) in found:
            continue
        found.add(real)
        try:
            asked = [str(real), "-I", "-S", "-c", "import platform; print(platform.python_version())"]
            said = subprocess.run(asked, capture_output=True, text=True, timeout=ASK_S, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            log.info("%s is passed over: %s", path, error)
            continue
        if _VERSION.match(said):
            yield Interpreter(str(real), said)


def _unusable(environment: Environment, interpreter: Interpreter) -> str:
    """The first wheel that the interpreter cannot use; empty: none."""
    usable = interpreter.tags
    for wheel in environment.wheels:
        try:
            if not parse_wheel_filename(wheel.filename)[3] & usable:
                return wheel.filename
        except InvalidWheelFilename:
            return wheel.filename
    return ""


def _unpack(folder: StateFolder, wheel: Wheel, root: Path, packages: Path) -> None:
    """From the very bytes that were hashed: the file is not opened again. Raises Failed."""
    try:
        with folder.blob(wheel.digest).open("rb") as stream:
            if hash_of_stream(stream) != hex_of(wheel.digest):
                raise Failed(FailureCode.FETCH_DAMAGED, f"{wheel.filename} changed while it was unpacked")
            stream.seek(0)
            with zipfile.ZipFile(stream) as archive:
                _check_size(archive, wheel)
                archive.filename = wheel.filename
                source = WheelFile(archive)
                source.validate_record(validate_contents=True)
                installer.install(source, _Destination(_scheme(root, packages), str(root), "posix"), {})
    except (zipfile.BadZipFile, InstallerError, ValueError, KeyError, AssertionError, FileExistsError) as error:
        raise Failed(
            FailureCode.FETCH_DAMAGED, f"{wheel.filename} cannot be unpacked: {error}", field="wheels"
        ) from error


def _check_size(archive: zipfile.ZipFile, wheel: Wheel) -> None:
    """Raises ValueError. What a file is said to hold is all that is unpacked of it."""
    entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if len(entries) > ENTRIES_MAX or size > wheel.unpacked_bytes:
        raise ValueError(f"it unpacks to {len(entries)} files of {size} bytes; {wheel.unpacked_bytes} are declared")


class _Destination(SchemeDictionaryDestination):
    """Into the packages and nowhere else: scripts and headers are for people, and nobody logs in here."""

    def write_file(self, scheme: Scheme, path: object, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        if scheme in _UNWRITTEN:
            return RecordEntry(str(path), None, None)
        return super().write_file(scheme, str(path), stream, is_executable)

    def write_script(self, name: str, module: str, attr: str, section: str) -> RecordEntry:  # noqa: ARG002 - installer's
        return RecordEntry(name, None, None)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        written = [(one, entry) for one, entry in records if one not in _UNWRITTEN]
        super().finalize_installation(scheme, record_file_path, written)


def _scheme(root: Path, packages: Path) -> dict[str, str]:
    inside = {
        "purelib": packages,
        "platlib": packages,
        "data": root,
        "scripts": root / "bin",
        "headers": root / "include",
    }
    return {name: str(path) for name, path in inside.items()}


def _compile(root: Path, packages: Path, final: Path, deadline: Deadline) -> None:
    """By the environment's own interpreter, without its packages: `-S` reads no `.pth` file. A file that does not compile
    is its package's business."""
    quietly = ("-q", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", str(final))
    command = [str(root / "bin" / "python"), "-I", "-S", "-m", "compileall", *quietly, str(packages)]
    _run(command, deadline, may_fail=True)


def _run(command: list[str], deadline: Deadline, *, may_fail: bool = False) -> None:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=min(STEP_S, deadline.left_s()), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(FailureCode.FETCH_TOO_SLOW, f"{command[0]} was not done in {error.timeout:.0f} s") from error
    if ended.returncode and not may_fail:
        said = (ended.stderr or ended.stdout).strip()[-300:]
        raise Failed(FailureCode.UNFIT, f"{' '.join(command[:4])} ended with status {ended.returncode}: {said}")
