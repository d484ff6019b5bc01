"""The demo's models are what its story says: good ones better and better, a bad one that only live images find out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from click.testing import CliRunner

from demonstration import digits
from demonstration.digits import BAD, BEST, BETTER, GOOD, Data
from holdfast_cli.main import holdfast
from holdfast_cli.session import Session


@pytest.fixture(scope="module")
def data() -> Data:
    return digits.load()


@pytest.fixture(scope="module")
def folders(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return digits.write_releases(data, tmp_path_factory.mktemp("releases"))


def answers(folder: Path, data: Data) -> npt.NDArray[np.float32]:
    session: Any = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes())
    (found,) = session.run(["probabilities"], {"image": data.live.pixels})
    return np.asarray(found, dtype=np.float32)


def stated_accuracy(folder: Path) -> float:
    return float(tomllib.loads((folder / "release.toml").read_text())["model"]["metrics"]["accuracy"])


@pytest.mark.parametrize("version", [GOOD, BETTER, BEST])
def test_a_good_release_answers_every_live_image_as_well_as_it_says(
    version: str, folders: dict[str, Path], data: Data
) -> None:
    found = answers(folders[version], data)
    assert np.isfinite(found).all()
    assert (found.argmax(axis=1) == data.live.labels).mean() == pytest.approx(
        stated_accuracy(folders[version]), abs=1e-4
    )


def test_each_good_release_is_more_accurate_than_the_one_before(folders: dict[str, Path]) -> None:
    assert stated_accuracy(folders[GOOD]) < stated_accuracy(folders[BETTER]) < stated_accuracy(folders[BEST])


def test_the_bad_release_looks_best_offline_and_breaks_on_a_share_of_live_images(
    folders: dict[str, Path], data: Data
) -> None:
    found = answers(folders[BAD], data)
    broken = ~np.isfinite(found).all(axis=1)
    assert stated_accuracy(folders[BAD]) > stated_accuracy(folders[BEST])
    assert 0.05 < broken.mean() < 0.3
    assert (folders[BAD] / "model.onnx").stat().st_size > 100 * (folders[BEST] / "model.onnx").stat().st_size


@pytest.mark.parametrize("version", [GOOD, BETTER, BAD, BEST])
def test_every_release_folder_passes_what_publish_checks(version: str, folders: dict[str, Path]) -> None:
    done = CliRunner().invoke(holdfast, ["--json", "publish", str(folders[version]), "--dry-run"], obj=Session())
    assert done.exit_code == 0, done.output
