# ruff: noqa: INP001 - a script beside its data, not a package
"""Makes the sample's files: trains on scikit-learn's iris data, writes training.csv, model.onnx and golden.json beside itself.

They are committed, so the sample publishes as it is. After a change here: python deploy/sample-release/make_sample.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, at import

import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

FOLDER = Path(__file__).parent
GOLDEN_ROWS = (0, 60, 120)  # one flower of each kind


def main() -> None:
    iris = load_iris()
    features = iris.data.astype(np.float32)
    rows = [
        ",".join([*(f"{value:g}" for value in row), str(kind)]) for row, kind in zip(features, iris.target, strict=True)
    ]
    head = "sepal_length_cm,sepal_width_cm,petal_length_cm,petal_width_cm,kind"
    (FOLDER / "training.csv").write_text("\n".join([head, *rows]) + "\n")

    trained = LogisticRegression(max_iter=1000).fit(features, iris.target)
    model = onnx_model(trained.coef_.T.astype(np.float32), trained.intercept_.astype(np.float32))
    (FOLDER / "model.onnx").write_bytes(model)

    session = onnxruntime.InferenceSession(model)
    cases = []
    for row in GOLDEN_ROWS:
        asked = features[row : row + 1]
        (answered,) = session.run(["probabilities"], {"features": asked})
        cases.append(
            {
                "inputs": [
                    {
                        "name": "features",
                        "datatype": "FP32",
                        "shape": [1, 4],
                        "data": [round(float(v), 6) for v in asked[0]],
                    }
                ],
                "outputs": [
                    {
                        "name": "probabilities",
                        "datatype": "FP32",
                        "shape": [1, 3],
                        "data": [round(float(v), 6) for v in answered[0]],
                    }
                ],
            }
        )
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FOLDER / "golden.json").write_text(f'{{"cases": [\n{lines}\n]}}\n')


def onnx_model(weights: np.ndarray, bias: np.ndarray) -> bytes:
    """Softmax of a linear map. The IR version and operator set are pinned to what small devices' runtimes read."""
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "weights", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
        ],
        "iris",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="holdfast-sample"
    )
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
