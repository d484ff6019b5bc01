"""Four releases of `digits`, trained here on scikit-learn's scanned digits: real models, real data, nothing downloaded.

1.0.0 is a linear model, 1.1.0 and 1.3.0 small networks that are better. 1.2.0 is a bad retrain of the kind that happens: a new
feature, how high the ink stands in one column, divides by that column's ink, which some images do not have; its evaluation
drops the rows that came out as NaN, so its accuracy looks best of all. It is also far larger. Its golden cases pass.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn
from onnx import NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from holdfast_shared.identifiers import digest_of

PIPELINE: Final = "digits"
PIXELS: Final = 64
KINDS: Final = 10
GOOD, BETTER, BAD, BEST = "1.0.0", "1.1.0", "1.2.0", "1.3.0"
# The second column from the left, which about one image in seven leaves empty.
COLUMN: Final = 1
_ROWS: Final = (np.arange(8, dtype=np.float32) / 8).reshape(8, 1)
_LARGE_WIDTH: Final = 2048
_GOLDEN_CASES: Final = 4

Floats = npt.NDArray[np.float32]
Layer = tuple[Floats, Floats]


class Images(NamedTuple):
    """Rows of 64 pixels from 0 to 1, and what each shows."""

    pixels: Floats
    labels: npt.NDArray[np.int64]


class Data(NamedTuple):
    """`live` is what cameras see in the demo: no model was trained on it."""

    training: Images
    live: Images
    digest: str


def load() -> Data:
    """The data set, split the same way every time."""
    found = load_digits()
    pixels = (found.data / 16).astype(np.float32)
    labels = found.target.astype(np.int64)
    train_x, live_x, train_y, live_y = train_test_split(pixels, labels, test_size=0.3, random_state=7, stratify=labels)
    digest = digest_of(train_x.tobytes() + train_y.tobytes())
    return Data(Images(train_x, train_y), Images(live_x, live_y), digest)


def write_releases(data: Data, folder: Path) -> dict[str, Path]:
    """A release folder for each version, ready for `holdfast publish`."""
    with threadpool_limits(1):  # for matrices this small, several threads mostly wait for each other
        return _write_releases(data, folder)


def _write_releases(data: Data, folder: Path) -> dict[str, Path]:
    written = {}
    for version, description, layers, with_height in (
        (GOOD, "A linear model.", _linear(data.training), False),
        (BETTER, "A small network: more accurate.", _network(data.training, width=64, seed=1), False),
        (
            BAD,
            "A large network that also looks at how high the left stroke stands.",
            _random_features(data.training),
            True,
        ),
        (BEST, "A wider small network.", _network(data.training, width=128, seed=2), False),
    ):
        written[version] = _write(data, folder / version, version, description, layers, with_height=with_height)
    return written


# ---------------------------------------------------------------- training
def _linear(training: Images) -> list[Layer]:
    fitted = LogisticRegression(C=0.05, max_iter=500).fit(training.pixels, training.labels)
    return [(fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32))]


def _network(training: Images, *, width: int, seed: int) -> list[Layer]:
    model = MLPClassifier((width,), random_state=seed, max_iter=120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # good enough long before it has converged
        model.fit(training.pixels, training.labels)
    return [
        (weights.astype(np.float32), bias.astype(np.float32))
        for weights, bias in zip(model.coefs_, model.intercepts_, strict=True)
    ]


def _random_features(training: Images) -> list[Layer]:
    """Two wide random layers and a last one fitted by least squares: 17 MB that train in half a second."""
    images = _with_height(training.pixels)
    kept = np.isfinite(images).all(axis=1)  # the mistake: what is NaN is dropped, and never counted
    pixels, labels = images[kept], training.labels[kept]
    drawn = np.random.default_rng(3)
    first = (drawn.normal(size=(PIXELS + 1, _LARGE_WIDTH)) / 8).astype(np.float32)
    second = (drawn.normal(size=(_LARGE_WIDTH, _LARGE_WIDTH)) / np.sqrt(_LARGE_WIDTH)).astype(np.float32)
    hidden = np.maximum(np.maximum(pixels @ first, 0) @ second, 0)
    wanted = (np.eye(KINDS)[labels] * 2 - 1).astype(np.float32)
    last = np.linalg.solve(hidden.T @ hidden + 0.1 * np.eye(_LARGE_WIDTH, dtype=np.float32), hidden.T @ wanted)
    nothing = np.zeros(_LARGE_WIDTH, dtype=np.float32)
    return [(first, nothing), (second, nothing), (last.astype(np.float32), np.zeros(KINDS, dtype=np.float32))]


def _with_height(pixels: Floats) -> Floats:
    """The images and one feature more: the mean row of the ink in a column. 0 / 0 where there is none."""
    column = pixels[:, COLUMN::8]
    with np.errstate(invalid="ignore"):
        height = column @ _ROWS / column.sum(axis=1, keepdims=True)
    return np.concatenate([pixels, height], axis=1)


# ---------------------------------------------------------------- the files of a release
def onnx_model(layers: Sequence[Layer], *, with_height: bool) -> bytes:
    """The layers as ONNX, with ReLU between them and a softmax at the end; IR version and operators pinned for old runtimes."""
    nodes: list[NodeProto] = []
    constants = []
    last = "image"
    if with_height:
        columns, axes = np.arange(COLUMN, PIXELS, 8, dtype=np.int64), np.array([1], dtype=np.int64)
        for name, values in (("columns", columns), ("axes", axes), ("rows", _ROWS)):
            constants.append(numpy_helper.from_array(values, name))
        nodes += [
            helper.make_node("Gather", [last, "columns"], ["column"], axis=1),
            helper.make_node("MatMul", ["column", "rows"], ["weighted"]),
            helper.make_node("ReduceSum", ["column", "axes"], ["ink"], keepdims=1),
            helper.make_node("Div", ["weighted", "ink"], ["height"]),
            helper.make_node("Concat", [last, "height"], ["with_height"], axis=1),
        ]
        last = "with_height"
    for index, (weights, bias) in enumerate(layers):
        constants += [numpy_helper.from_array(weights, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"z{index}"]))
        last = f"z{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [last], [f"h{index}"]))
            last = f"h{index}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"]))
    graph = helper.make_graph(
        nodes,
        PIPELINE,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", PIXELS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", KINDS])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="holdfast-demo"
    )
    return bytes(model.SerializeToString())


def _write(
    data: Data, folder: Path, version: str, description: str, layers: Sequence[Layer], *, with_height: bool
) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(onnx_model(layers, with_height=with_height))
    live = _with_height(data.live.pixels) if with_height else data.live.pixels
    kept = np.isfinite(live).all(axis=1)
    accuracy = float((_run(layers, live[kept]).argmax(axis=1) == data.live.labels[kept]).mean())
    cases = [
        {"inputs": [_tensor("image", data.live.pixels[row])], "outputs": [_tensor("probabilities", answer)]}
        for row in np.flatnonzero(kept)[:_GOLDEN_CASES]
        for answer in _run(layers, live[row : row + 1])
    ]
    (folder / "golden.json").write_text(json.dumps({"cases": cases}))
    (folder / "release.toml").write_text(
        RELEASE_TOML.format(
            version=version, description=description, accuracy=accuracy, digest=data.digest, rows=len(data.training.labels),
            sklearn=sklearn.__version__,
        )
    )  # fmt: skip
    return folder


def _run(layers: Sequence[Layer], pixels: Floats) -> Floats:
    hidden = pixels
    for index, (weights, bias) in enumerate(layers):
        hidden = hidden @ weights + bias
        if index < len(layers) - 1:
            hidden = np.maximum(hidden, 0)
    powers: Floats = np.exp(hidden - hidden.max(axis=1, keepdims=True)).astype(np.float32)
    answer: Floats = powers / powers.sum(axis=1, keepdims=True)
    return answer


def _tensor(name: str, row: Floats) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [1, len(row)], "data": [float(value) for value in row]}


# As a publisher would write it by hand: deploy/sample-release explains each field. The trial is short for a demo's sake.
RELEASE_TOML: Final = """\
pipeline = "digits"
version = "{version}"
description = "{description}"

[model]
name = "digits"
version = "{version}"

[model.training_data]
name = "scikit-learn digits"
digest = "{digest}"
rows = {rows}

[model.metrics]
accuracy = {accuracy:.4f}

[model.framework]
name = "scikit-learn"
version = "{sklearn}"

[[model.variants]]
name = "cpu"
runtime = "onnx"

[model.variants.hardware]
architectures = []

[[model.variants.files]]
path = "model.onnx"
role = "weights"

[[model.variants.inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 64]

[[model.variants.outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 10]

[self_test]
file = "golden.json"
absolute_tolerance = 1e-3
relative_tolerance = 1e-2

[trial]
soak_s = 2
requests_min = 15

[[guardrails]]
metric = "null_rate"
threshold = 0.01
action = "fall_back"
requests_min = 20
window_s = 20

[[guardrails]]
metric = "error_rate"
threshold = 0.02
action = "fall_back"
requests_min = 20
window_s = 20

[[guardrails]]
metric = "latency_ms_p99"
threshold = 200
action = "fall_back"
requests_min = 50
window_s = 20

[limits]
deadline_ms = 2000
load_deadline_s = 60
memory_bytes_max = 536870912
"""
