"""An environment is built from wheels by hash, offline, out of exactly what they name; what cannot be names its field."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import worker_wheel
from holdfast_agent.edge import blobs, environments
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import building, outcome
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared.errors import HoldfastError
from holdfast_shared.wire.environment import Settings, Wheel, WorkerWheel
from support import confined, wheels
from support.wheels import Made, Packed

# In the worker's place, for what is about building alone.
TINY = wheels.small("holdfast_worker", "0.0", {"holdfast_worker/__init__.py": b""})
PURE = wheels.small("tidy", "1.0", {"tidy/__init__.py": b"ANSWER = 42\n"})
# A process that builds what is installed in a state folder, and says which networks it has.
BUILDS = (
    "import sys; from pathlib import Path; from holdfast_agent.edge import blobs; from holdfast_agent.fetch import building\n"
    "from holdfast_agent.edge.layout import StateFolder; from holdfast_agent.fetch.patience import Deadline\n"
    "folder, digest = StateFolder(Path(sys.argv[1])), sys.argv[2]; found = blobs.environment_of(folder, digest)\n"
    "building.build(folder, digest, found, building.interpreter_for(found), Deadline(120))\n"
    "print(*(line.partition(':')[0].strip() for line in Path('/proc/net/dev').read_text().splitlines()[2:]))"
)
# What a wheel may bring that Python runs by itself: at every start, or when a script is called.
EAGER = b"import pathlib, sys; pathlib.Path(sys.prefix, 'ran').touch()\n"
NOSY = wheels.small(
    "nosy",
    "1.0",
    {
        "nosy/__init__.py": EAGER,
        "sitecustomize.py": EAGER,
        "nosy.pth": EAGER,
        "nosy-1.0.data/scripts/nosy": b"#!python\n" + EAGER,
        "nosy-1.0.dist-info/entry_points.txt": b"[console_scripts]\nnosy-too = nosy:main\n",
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateFolder, Made]:
    """One that was built and is only looked at."""
    made_once, folder = made(PURE), StateFolder(tmp_path_factory.mktemp("whole"))
    build(folder, made_once)
    return folder, made_once


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def made(*more: Packed, **details: Any) -> Made:
    return wheels.environment(**{"packages": (), "more": more, "worker_packed": TINY, **details})


def build(folder: StateFolder, one: Made) -> Path:
    one.install(folder)
    interpreter = building.interpreter_for(one.environment)
    building.build(folder, one.digest, one.environment, interpreter, Deadline(120))
    return folder.environment(one.digest)


def failure(act: Callable[[], object]) -> str:
    """The code and the words of what it raises."""
    with pytest.raises(HoldfastError) as caught:
        act()
    ended = outcome.of_error(caught.value)
    return f"{ended.code}: {ended.detail}"


def ask(folder: StateFolder, one: Made, code: str) -> str:
    command = [str(folder.environment_python(one.digest)), "-I", "-B", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_what_runs_in_it_comes_from_it(folder: StateFolder) -> None:
    """Prefix and modules lie inside; nothing of the device's own packages can be imported."""
    one = made(PURE, worker_packed=wheels.worker())
    root = build(folder, one)
    said = ask(
        folder, one, "import sys, tidy, holdfast_worker; print(sys.prefix, tidy.__file__, holdfast_worker.__file__)"
    )
    assert all(place.startswith(str(root)) for place in said.split())
    assert (
        ask(folder, one, "import importlib.util as u; print(u.find_spec('numpy'), u.find_spec('pip'))") == "None None"
    )
    assert environments.damaged(root) == ""


def test_nothing_of_a_wheel_is_run_while_it_is_built(folder: StateFolder) -> None:
    """Neither `.pth` lines nor sitecustomize nor scripts; and no script is left for anybody to run."""
    root = build(folder, made(NOSY))
    assert not list(folder.root.rglob("ran"))
    assert {path.name for path in (root / "bin").iterdir() if path.name.startswith("nosy")} == set()


def test_it_is_built_without_any_network(folder: StateFolder) -> None:
    """In a network namespace of its own, which has no route to anywhere."""
    one = made(PURE)
    one.install(folder)
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", BUILDS, str(folder.root), one.digest]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "unshare failed" in ended.stderr and "CI" not in os.environ:
        pytest.skip("this machine allows no namespaces")
    assert (ended.stdout.strip(), ended.returncode) == ("lo", 0), ended.stderr
    assert blobs.damaged(folder, one.digest) == []


UNIT = Path(__file__).parents[3] / "deploy" / "holdfast-agent.service"


@pytest.mark.slow
def test_it_is_built_under_the_units_own_system_call_filter(folder: StateFolder) -> None:
    """As an agent that systemd started would have it built."""
    if shutil.which("systemd-analyze") is None and "CI" not in os.environ:
        pytest.skip("systemd-analyze is not here")
    one = made(PURE)
    one.install(folder)
    command = [sys.executable, confined.__file__, str(UNIT), sys.executable, "-c", BUILDS, str(folder.root), one.digest]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert blobs.damaged(folder, one.digest) == []


def test_the_same_wheels_give_the_same_files(folder: StateFolder) -> None:
    """Where it is built leaves no trace in it but the paths of its interpreter's own configuration."""
    one = made(PURE)
    before = {path: path.read_bytes() for path in build(folder, one).rglob("site-packages/**/*") if path.is_file()}
    shutil.rmtree(folder.environments)
    root = build(folder, one)
    assert {path: path.read_bytes() for path in root.rglob("site-packages/**/*") if path.is_file()} == before
    assert not any(b".partial-" in content for content in before.values())


# What a wheel may get wrong.


def _escaping() -> Packed:
    return wheels.small("outside", "1.0", {"../../../../outside.py": b""})


def _rehashed() -> Packed:
    """A wheel whose content is not what its RECORD says, with a digest that is signed all the same."""
    given, written = io.BytesIO(PURE.content), io.BytesIO()
    with zipfile.ZipFile(given) as source, zipfile.ZipFile(written, "w") as archive:
        for entry in source.infolist():
            archive.writestr(entry, source.read(entry).replace(b"ANSWER = 42", b"ANSWER = 43"))
    return Packed(PURE.filename, written.getvalue())


def _over_another() -> Packed:
    return wheels.small("holdfast_worker_too", "1.0", {"holdfast_worker/__init__.py": b"# another\n"})


def _over_the_interpreter() -> Packed:
    return wheels.small("usurper", "1.0", {"usurper-1.0.data/data/bin/python": b"#!/bin/sh\n"})


@pytest.mark.parametrize(
    ("wheel", "words"),
    [
        (_escaping, "outside of the target"),
        (_rehashed, "didn't match RECORD"),
        (_over_another, "already exists"),
        (_over_the_interpreter, "already exists"),
        (lambda: Packed("tidy-1.0-py3-none-any.whl", b"no zip"), "not a zip"),
        (lambda: Packed("other-1.0-py3-none-any.whl", PURE.content), "Unable to retrieve `RECORD`"),
    ],
    ids=["escapes", "other content", "over another wheel", "over the interpreter", "no zip", "another name"],
)
def test_a_wheel_that_is_not_what_it_says_leaves_nothing(
    folder: StateFolder, wheel: Callable[[], Packed], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = wheel()
    monkeypatch.setattr(Packed, "described", _described)
    found = failure(lambda: build(folder, made(bad)))
    assert found.startswith("fetch-damaged")
    assert bad.filename in found
    assert words in found
    assert list(folder.environments.iterdir()) == []
    assert not (folder.root.parent / "outside.py").exists()


def _described(self: Packed) -> Any:
    """Also of what is no zip."""
    return Wheel(filename=self.filename, digest=self.digest, size_bytes=len(self.content), unpacked_bytes=10 * 1024**2)


def test_a_wheel_that_unpacks_to_more_than_it_says_is_not_unpacked(folder: StateFolder) -> None:
    """A megabyte of zeros packs to a kilobyte, and a gigabyte to a megabyte."""
    one = made(PURE)
    described = one.environment.wheels[0]
    lying = made(changes={"wheels": (msgspec.structs.replace(described, unpacked_bytes=100),)})
    assert "100 are declared" in failure(lambda: build(folder, lying))


# What does not fit here.


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"requires_python": "<3"}, "unfit", "is not <3"),
        ({"requires_python": "newest"}, "not-supported", "requires_python"),
        ({"critical": ("teleport",)}, "not-supported", "teleport"),
        ({"settings": Settings(variables={"LD_PRELOAD": "x"})}, "not-supported", "LD_PRELOAD"),
        (
            {"worker": WorkerWheel(filename=TINY.filename, oldest=98, newest=99)},
            "not-supported",
            "versions 98 to 99 of the protocol",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_fetched(
    changes: Mapping[str, Any], code: str, words: str
) -> None:
    found = failure(lambda: building.interpreter_for(made(changes=changes).environment))
    assert found.startswith(code)
    assert words in found


@pytest.mark.parametrize("tag", ["cp27-cp27m-manylinux_2_17_x86_64", "cp311-cp311-win_amd64", "py3-none-vax"])
def test_a_wheel_for_another_python_or_machine_is_unfit(tag: str) -> None:
    found = failure(lambda: building.interpreter_for(made(wheels.small("far", "1.0", {}, tag)).environment))
    assert found.startswith("unfit")
    assert f"cannot use far-1.0-{tag}.whl" in found


def test_the_first_interpreter_that_fits_is_taken() -> None:
    """The agent's own, where nothing speaks against it; else whichever the environment asks for."""
    here = list(building._interpreters())
    assert building.interpreter_for(made().environment) == here[0]
    for one in here:
        assert building.interpreter_for(made(changes={"requires_python": f"=={one.version}"}).environment) == one


# Damage.


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "lib" / "python3.11" / "site-packages" / "sitecustomize.py").write_bytes(b""),
        lambda root: next(root.rglob("tidy/__init__.py")).write_bytes(b"ANSWER = 43\n"),
        lambda root: next(root.rglob("tidy/__pycache__/*.pyc")).unlink(),
        lambda root: (root / environments.LIST).write_bytes(b"{}"),
        lambda root: (root / environments.LIST).unlink(),
        lambda root: ((root / "bin" / "python3").unlink(), (root / "bin" / "python3").symlink_to("/bin/sh")),
        lambda root: ((root / "pyvenv.cfg").unlink(), (root / "pyvenv.cfg").symlink_to("/dev/null")),
        shutil.rmtree,
    ],
    ids=["added", "changed", "lost", "list spoilt", "list lost", "link turned", "file turned link", "gone"],
)
def test_what_is_not_as_it_was_built_is_damaged(
    whole: tuple[StateFolder, Made], folder: StateFolder, spoil: Callable[[Path], object]
) -> None:
    """Also one file more: in a folder of packages, what lies there runs."""
    built, one = whole
    shutil.copytree(built.root, folder.root, symlinks=True)
    assert blobs.damaged(folder, one.digest) == []
    spoil(folder.environment(one.digest))
    assert blobs.damaged(folder, one.digest) == [one.digest]


def test_what_is_damaged_is_built_again_in_its_place(folder: StateFolder) -> None:
    one = made(PURE)
    next(build(folder, one).rglob("tidy/__init__.py")).write_bytes(b"ANSWER = 43\n")
    build(folder, one)
    assert blobs.damaged(folder, one.digest) == []
    assert ask(folder, one, "import tidy; print(tidy.ANSWER)") == "42"


def test_a_wheel_that_rotted_is_damage_too(whole: tuple[StateFolder, Made], folder: StateFolder) -> None:
    """It could not be built again without a network."""
    built, one = whole
    shutil.copytree(built.root, folder.root, symlinks=True)
    folder.blob(PURE.digest).write_bytes(b"")
    assert blobs.damaged(folder, one.digest) == [PURE.digest]


def test_an_interpreter_that_went_with_an_update_is_damage(folder: StateFolder, tmp_path: Path) -> None:
    python = tmp_path / "python3.11"
    python.symlink_to(Path(sys.base_prefix) / "bin" / "python3.11")
    one = made(PURE)
    one.install(folder)
    building.build(folder, one.digest, one.environment, building.Interpreter(str(python), "3.11.7"), Deadline(120))
    assert blobs.damaged(folder, one.digest) == []
    python.unlink()
    assert blobs.damaged(folder, one.digest) == [one.digest]


def seen_under(folder: StateFolder, name: str) -> bool:
    """Whether it is there yet, in a tree that changes while it is walked."""
    try:
        return next(folder.root.glob(f"environments/.partial-*/**/{name}"), None) is not None
    except FileNotFoundError:
        return False


def test_killed_while_it_is_built_nothing_has_its_name(folder: StateFolder) -> None:
    """At every stage that can be seen from outside: what is left is cleared by the next, which succeeds."""
    one = made(PURE)
    one.install(folder)
    for seen in ("pyvenv.cfg", "holdfast_worker/__init__.py", "tidy/__init__.py"):
        command = [sys.executable, "-c", BUILDS, str(folder.root), one.digest]
        with subprocess.Popen(command, start_new_session=True) as process:
            due = time.monotonic() + 60
            while not seen_under(folder, seen) and process.poll() is None:
                assert time.monotonic() < due, seen
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:  # it was quicker than we looked
            continue
        assert not folder.environment(one.digest).exists()
    build(folder, one)
    assert [path.name for path in folder.environments.iterdir()] == [one.digest.removeprefix("sha256:")]


def test_the_worker_wheel_is_the_same_every_time_and_says_its_protocol(tmp_path: Path) -> None:
    first = worker_wheel.build(tmp_path).read_bytes()
    assert worker_wheel.build(tmp_path).read_bytes() == first
