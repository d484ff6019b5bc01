"""A release folder is checked as a whole before a byte is sent; each fault is named as it is written in release.toml."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast_cli.manifests import build
from holdfast_shared import strict_json
from holdfast_shared.errors import HoldfastError, Malformed, Missing, NotSupported
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import ENVELOPE_BYTES_MAX, ModelVersion, Release, blobs_of

SAMPLE_PIPELINE = Path(__file__).parents[2] / "deploy" / "sample-pipeline"


def test_the_sample_builds_as_it_is(folder: Path) -> None:
    built = build(folder)
    assert (built.release.pipeline, built.release.version) == ("iris", "1.0.0")
    assert (
        strict_json.decode(built.release_payload, Release, what="release", size_bytes_max=ENVELOPE_BYTES_MAX)
        == built.release
    )
    assert (
        strict_json.decode(built.models[0].payload, ModelVersion, what="model", size_bytes_max=ENVELOPE_BYTES_MAX)
        == built.models[0].manifest
    )
    assert built.release.stages[0].model.digest == digest_of(built.models[0].payload)
    assert built.release.outputs == {"probabilities": "model.probabilities"}


def test_every_blob_that_the_manifests_name_is_a_file_of_the_folder(folder: Path) -> None:
    built = build(folder)
    wanted = blobs_of(built.release, (built.models[0].manifest,))
    assert wanted == {digest_of(path.read_bytes()): path.stat().st_size for path in built.files.values()}
    assert wanted.keys() == built.files.keys()


def test_the_training_data_is_hashed_and_stays_where_it_is(folder: Path) -> None:
    built = build(folder)
    data = (folder / "training.csv").read_bytes()
    assert built.models[0].manifest.training_data.digest == digest_of(data)
    assert folder / "training.csv" not in built.files.values()


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    assert build(folder).release_payload == build(folder).release_payload


@pytest.mark.parametrize("name", ["model.onnx", "golden.json"])
def test_a_link_publishes_nothing_from_outside_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Its maker could otherwise have a publisher send any file of the publisher's machine to a fleet."""
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(Malformed, match="leads outside the folder"):
        build(folder)
    (folder / "copy").write_bytes(elsewhere.read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to("copy")
    build(folder)


def test_training_data_is_only_hashed_and_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "training.csv").rename(tmp_path / "elsewhere")
    (folder / "training.csv").symlink_to(tmp_path / "elsewhere")
    build(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "golden.json").unlink()
    os.mkfifo(folder / "golden.json")
    with pytest.raises(Malformed, match="no regular file"):
        build(folder)


class Case(NamedTuple):
    name: str
    old: str
    new: str
    field: str
    words: str
    kind: type[HoldfastError] = Malformed


CASES = [
    Case("lacks pipeline", 'pipeline = "iris"\n', "", "pipeline", "is missing"),
    Case("lacks data set", 'name = "scikit-learn iris"\n', "", "model.training_data.name", "is missing"),
    Case("lacks data hash", 'file = "training.csv"\n', "", "model.training_data", "`digest`"),
    Case("lacks metrics", "[model.metrics]\naccuracy = 0.973\n", "", "model.metrics", "is missing"),
    Case("empty metrics", "accuracy = 0.973\n", "", "model.metrics", "length >= 1"),
    Case(
        "lacks framework",
        '[model.framework]\nname = "scikit-learn"\nversion = "1.9"\n',
        "",
        "model.framework",
        "missing",
    ),
    Case(
        "lacks hardware", "[model.variants.hardware]", "[model.variants.other]", "model.variants[0].hardware", "missing"
    ),
    Case("lacks soak", "soak_s = 600\n", "", "trial.soak_s", "is missing"),
    Case("typo", "soak_s = 600", "soaks = 600", "trial.soaks", "did you mean `soak_s`?"),
    Case("bad version", 'version = "1.0.0"\ndescription', 'version = "1.0"\ndescription', "version", "such as 1.10.0"),
    Case("bad name", 'pipeline = "iris"', 'pipeline = "Iris_1"', "pipeline", "lower-case letters"),
    Case("not a table", "[trial]\nsoak_s = 600\nrequests_min = 50\n", "", "trial", "is missing"),
    Case("wrong type", "rows = 150", 'rows = "150"', "model.training_data.rows", "expected `int"),
    Case("nan metric", "accuracy = 0.973", "accuracy = nan", "model.metrics", "finite"),
    Case("infinite threshold", "threshold = 100\n", "threshold = inf\n", "guardrails[2].threshold", "finite"),
    Case("bad role", 'role = "weights"', 'role = "weight"', "model.variants[0].files[0].role", "'weight'"),
    Case("no weights", 'role = "weights"', 'role = "serving"', "model.variants[0].files", "exactly one file"),
    Case(
        "drift may not fall back",
        'metric = "null_rate"',
        'metric = "drift"',
        "guardrails[0]",
        "drift may halt or report, never fall_back",
    ),
    Case("no such output", 'probabilities = "probabilities"', 'p = "scores"', "outputs.p", "no output 'scores'"),
    Case(
        "file is missing",
        'path = "model.onnx"',
        'path = "mode.onnx"',
        "model.variants[0].files[0].path",
        "No such file",
    ),
    Case("file is elsewhere", '"model.onnx"', '"a/../../model.onnx"', "model.variants[0].files[0].path", "outside"),
    Case("data is elsewhere", '"training.csv"', '"/etc/hostname"', "model.training_data.file", "outside"),
    Case(
        "wrong hash",
        'role = "weights"\n',
        f'role = "weights"\ndigest = "sha256:{"0" * 64}"\n',
        "model.variants[0].files[0].digest",
        "wrong hash",
    ),
    Case(
        "wrong data hash",
        "rows = 150\n",
        f'rows = 150\ndigest = "sha256:{"0" * 64}"\n',
        "model.training_data.digest",
        "wrong hash",
    ),
    Case("not ONNX", '"model.onnx"', '"golden.json"', "model.variants[0].files[0].path", "is not an ONNX model"),
    Case(
        "not TFLite",
        'runtime = "onnx"',
        'runtime = "tflite"',
        "model.variants[0].files[0].path",
        "is not a TFLite model",
    ),
    Case("other type", 'datatype = "FP32"', 'datatype = "FP64"', "model.variants[0].inputs[0].datatype", "as FP32"),
    Case("other shape", "shape = [-1, 4]", "shape = [-1, 5]", "model.variants[0].inputs[0].shape", "shape [-1, 4]"),
    Case("no such input", 'name = "features"', 'name = "image"', "model.variants[0].inputs[0].name", "it has features"),
    Case(
        "an environment twice",
        'version = "1.0.0"\ndescription',
        'version = "1.0.0"\nenvironments = ["system", "system"]\ndescription',
        "environments",
        "names each environment once",
    ),
    Case(
        "stages of one model",
        'version = "1.0.0"\ndescription',
        'version = "1.0.0"\nstages = [{name = "a", model = "iris-linear", inputs = {}}]\ndescription',
        "stages",
        "write [[models]] for several",
    ),
    Case(
        "reference that is not there",
        'version = "1.0.0"\ndescription',
        'version = "1.0.0"\nreference = "bins.json"\ndescription',
        "reference",
        "cannot read bins.json",
    ),
    Case(
        "accuracy without scores",
        'metric = "latency_ms_p99"',
        'metric = "accuracy_proxy"',
        "guardrails[2].metric",
        "accuracy_proxy needs `scores`",
    ),
    Case(
        "scores of no output",
        'version = "1.0.0"\ndescription',
        'version = "1.0.0"\nscores = "certainty"\ndescription',
        "scores",
        "is no output of this release",
    ),
    Case(
        "minimum agent",
        'version = "1.0.0"\ndescription',
        'version = "1.0.0"\nagent_version_min = "2"\ndescription',
        "agent_version_min",
        "2",
    ),
    Case(
        "requires itself",
        "[trial]",
        '[[requires]]\npipeline = "iris"\nat_least = "1.0.0"\n\n[trial]',
        "requires[0].pipeline",
        "is the release's own pipeline",
    ),
    Case("not TOML", "[trial]", "[trial", "release.toml", "is not TOML"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_named_as_it_is_written(folder: Path, case: Case) -> None:
    path = folder / "release.toml"
    text = path.read_text()
    assert case.old in text, "the case no longer fits the sample"
    path.write_text(text.replace(case.old, case.new))
    with pytest.raises(HoldfastError) as raised:
        build(folder)
    assert type(raised.value) is case.kind
    assert case.field in raised.value.field.split(", ")
    assert case.words in raised.value.message
    assert raised.value.next_step


PIPELINE_CASES = [
    Case("circle", '"request.pixels"', '"classify.probabilities"', "stages[0].inputs.pixels", "FP32 [-1, 10]"),
    Case("from nowhere", '"scale.image"', '"scaled.image"', "stages[1].inputs.image", "there is no scaled.image"),
    Case("no such output", '"scale.image"', '"scale.picture"', "stages[1].inputs.image", "there is no scale.picture"),
    Case("not wired", '{ pixels = "request.pixels" }', "{}", "stages[0].inputs.pixels", "is not wired"),
    Case("unused stage", '"scale.image"', '"request.image"', "stages[0]", "nothing uses what scale answers"),
    Case(
        "other shape",
        "shape = [-1, 64]\n\n[[models]]",
        "shape = [-1, 63]\n\n[[models]]",
        "stages[1].inputs.image",
        "scale.image is FP32 [-1, 63], the model takes FP32 [-1, 64]",
    ),
    Case(
        "other type", 'datatype = "UINT8"', 'datatype = "INT8"', "models[0].variants[0].inputs[0].datatype", "as UINT8"
    ),
    Case("answer from nowhere", '"classify.probabilities"', '"classify.label"', "outputs.probabilities", "there is no"),
    Case(
        "no such model", 'model = "digits-scale"', 'model = "scaler"', "stages[0].model", "there is no model 'scaler'"
    ),
    Case("model without stage", 'model = "digits-linear"', 'model = "digits-scale"', "models[1]", "no stage uses"),
    Case("two stages of one name", 'name = "classify"', 'name = "scale"', "stages[1].name", "another stage is called"),
    Case("stage called request", 'name = "scale"', 'name = "request"', "stages[0].name", "name it otherwise"),
    Case("no answers", '[outputs]\nprobabilities = "classify.probabilities"\n', "", "outputs", "are missing"),
    Case(
        "not TFLite", '"scale.tflite"', '"golden.json"', "models[0].variants[0].files[0].path", "is not a TFLite model"
    ),
    Case("misspelt", 'model = "digits-scale"', 'modell = "digits-scale"', "stages[0].modell", "did you mean `model`?"),
]


@pytest.mark.parametrize("case", PIPELINE_CASES, ids=lambda case: case.name)
def test_a_fault_of_a_pipeline_is_named_as_it_is_written(tmp_path: Path, case: Case) -> None:
    shutil.copytree(SAMPLE_PIPELINE, tmp_path / "pipeline")
    test_a_fault_is_named_as_it_is_written(tmp_path / "pipeline", case)


def test_the_sample_pipeline_builds_as_it_is() -> None:
    """Models in the order of the file, stages as they are wired there."""
    built = build(SAMPLE_PIPELINE)
    assert [one.manifest.name for one in built.models] == ["digits-scale", "digits-linear"]
    assert [(one.name, one.model.digest) for one in built.release.stages] == [
        ("scale", built.models[0].digest),
        ("classify", built.models[1].digest),
    ]
    assert built.release.outputs == {"probabilities": "classify.probabilities"}
    wanted = blobs_of(built.release, tuple(one.manifest for one in built.models))
    assert wanted.keys() == built.files.keys()


def test_a_function_in_python_needs_an_environment_of_its_own(folder: Path) -> None:
    """Its code comes from an environment's wheels, and the device's own Python has none of a publisher's."""
    path = folder / "release.toml"
    path.write_text(
        path.read_text()
        .replace('runtime = "onnx"', 'runtime = "python"')
        .replace('role = "weights"', 'role = "serving"')
    )
    with pytest.raises(NotSupported) as raised:
        build(folder)
    assert raised.value.field == "model.variants[0].runtime"
    assert "'system' has none" in raised.value.message


def test_all_faults_are_told_at_once(folder: Path) -> None:
    path = folder / "release.toml"
    path.write_text(path.read_text().replace('pipeline = "iris"\n', "").replace("soak_s = 600", "soak_s = -1"))
    with pytest.raises(Malformed) as raised:
        build(folder)
    assert raised.value.field == "pipeline, trial.soak_s"
    assert "2 faults: 1) pipeline: is missing; 2) trial.soak_s: expected `int` >= 0" in raised.value.message


def with_second_variant(folder: Path, old: str, new: str) -> None:
    path = folder / "release.toml"
    text = path.read_text()
    start, end = text.index("[[model.variants]]"), text.index("# ---- How a device decides")
    path.write_text(text[:end] + text[start:end].replace(old, new) + text[end:])


def test_a_model_may_have_several_variants(folder: Path) -> None:
    with_second_variant(folder, 'name = "cpu"', 'name = "small"')
    assert [one.name for one in build(folder).models[0].manifest.variants] == ["cpu", "small"]


def test_two_variants_of_one_name_are_refused(folder: Path) -> None:
    with_second_variant(folder, "33_554_432", "16_777_216")
    with pytest.raises(Malformed) as raised:
        build(folder)
    assert raised.value.field == "model.variants[1].name"


def test_variants_with_other_tensors_are_refused(folder: Path) -> None:
    """An application must not see which one a device runs."""
    with_second_variant(folder, 'name = "cpu"', 'name = "small"')
    path = folder / "release.toml"
    text = path.read_text()
    place = text.rindex("shape = [-1, 3]")
    path.write_text(text[:place] + "shape = [1, 3]" + text[place + len("shape = [-1, 3]") :])
    with pytest.raises(Malformed) as raised:
        build(folder)
    assert raised.value.field == "model.variants[1].outputs"


def test_no_release_toml_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(Missing) as raised:
        build(tmp_path)
    assert raised.value.field == "FOLDER"
    assert "deploy/sample-release" in raised.value.next_step


GOLDEN: list[tuple[str, Callable[[str], str], str]] = [
    ("no JSON", lambda text: text[:-4], "not valid JSON"),
    ("no cases", lambda _: '{"cases": []}', "length >= 1"),
    (
        "other tensor",
        lambda text: text.replace('"features"', '"image"', 1),
        "cases[0].inputs[0] (image): no such tensor",
    ),
    (
        "too few values",
        lambda text: text.replace("[5.1, 3.5, 1.4, 0.2]", "[5.1, 3.5]"),
        "2 values, its shape [1, 4] has 4",
    ),
    ("other datatype", lambda text: text.replace('"FP32"', '"FP64"', 1), "datatype FP64, declared FP32"),
    ("other shape", lambda text: text.replace("[1, 3]", "[3]", 1), "shape [3], declared [-1, 3]"),
]


@pytest.mark.parametrize(("name", "spoil", "words"), GOLDEN, ids=[name for name, _, _ in GOLDEN])
def test_golden_cases_that_cannot_be_asked_are_refused(
    folder: Path, name: str, spoil: Callable[[str], str], words: str
) -> None:
    """Such a case would condemn a good release on every device."""
    path = folder / "golden.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(Malformed) as raised:
        build(folder)
    assert "self_test.file" in raised.value.field
    assert words in raised.value.message
