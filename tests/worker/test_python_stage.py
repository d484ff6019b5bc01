"""A stage in Python: a function of the environment's packages alone, whose answers are held to the manifest."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Hardware, Tensor, Variant
from holdfast_worker import release_runner
from holdfast_worker.failures import LoadRefused, ModelRaised
from holdfast_worker.python_runtime import PythonRuntime, PythonSession
from support.installed_release import install

IMAGE = Tensor(name="image", datatype="FP32", shape=(-1, 4))
DECLARED = Variant(name="cpu", runtime="python", hardware=Hardware(), files=(), inputs=(IMAGE,), outputs=(IMAGE,))
Load = Callable[[str], PythonSession]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """A real package with that body, as an environment has it; its `answer` as a session."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    name = f"stage_{uuid.uuid4().hex}"

    def make(body: str) -> PythonSession:
        (packages / f"{name}.py").write_text(f"import numpy as np\n{body}\n")
        entry = f'{{"entry": "{name}:answer"}}'.encode()
        return PythonRuntime([packages]).load(entry, threads=1, declared=DECLARED)

    yield make
    sys.modules.pop(name, None)


def asked(rows: int = 2) -> dict[str, np.ndarray]:
    return {"image": np.ones((rows, 4), np.float32)}


def test_a_function_takes_arrays_by_name_and_answers_them(load: Load) -> None:
    session = load("def answer(given): return {'image': given['image'] * np.float32(0.5), 'more': 1}")
    assert session.run(asked(), ("image",))["image"].tolist() == [[0.5] * 4] * 2
    assert [(one.name, one.datatype, one.shape) for one in session.inputs] == [("image", "FP32", (-1, 4))]


def test_what_it_leaves_out_is_missing_as_of_any_model(load: Load) -> None:
    assert load("def answer(given): return {}").run(asked(), ("image",)) == {}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("given['image'].astype(np.float64)", "is of float64, declared FP32"),
        ("given['image'][:, :3]", "has shape [2, 3], declared [-1, 4]"),
        ("given['image'].tolist()", "is list, not an array"),
    ],
)
def test_an_answer_of_another_form_is_the_models_failure(load: Load, answer: str, words: str) -> None:
    with pytest.raises(ModelRaised) as raised:
        load(f"def answer(given): return {{'image': {answer}}}").run(asked(), ("image",))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def answer(given): return 1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        ("def answer(given): return [given]", "answered list, not a dict"),
        ("def answer(): return {}", "TypeError"),
    ],
)
def test_what_it_raises_is_the_models_failure(load: Load, body: str, words: str) -> None:
    with pytest.raises(ModelRaised) as raised:
        load(body).run(asked(), ("image",))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import no_such_package", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemError('at import')", "cannot be imported: SystemError: at import"),
        ("answer = 7", "has no function answer"),
    ],
)
def test_a_function_that_is_not_there_fails_to_load(load: Load, body: str, words: str) -> None:
    with pytest.raises(LoadRefused) as refused:
        load(body)
    assert refused.value.code == "load-failed"
    assert words in refused.value.detail


@pytest.mark.parametrize("entry", ["os:system", "subprocess:run", "sys:exit", "holdfast_worker.nulls:null_in"])
def test_only_the_environments_packages_bring_functions(entry: str, tmp_path: Path) -> None:
    """Not the standard library, and nothing that lies elsewhere on the path."""
    with pytest.raises(LoadRefused, match="is no package of the environment"):
        PythonRuntime([tmp_path]).load(f'{{"entry": "{entry}"}}'.encode(), threads=1, declared=DECLARED)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"entry": "os.system"}', b'{"entry": "a:b", "code": "1"}', b'{"entry": "a:b()"}']
)
def test_another_file_names_no_function(raw: bytes) -> None:
    with pytest.raises(LoadRefused, match=r"package\.module:function"):
        PythonRuntime().load(raw, threads=1, declared=DECLARED)


def test_the_devices_own_environment_runs_no_function(tmp_path: Path) -> None:
    """Also when a publisher's server let it through."""
    state = StateFolder(tmp_path)
    ref = install(state, "digits", "1.0.0", b'{"entry": "os:system"}', golden=[], variant_changes={"runtime": "python"})
    with pytest.raises(LoadRefused, match="needs the runtime python") as refused:
        release_runner.load(state.manifests, state.blobs, ref.digest)
    assert refused.value.code == "not-supported"
