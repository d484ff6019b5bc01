# ruff: noqa: INP001 - a script beside its data, not a package
"""Makes the sample's files: trains on scikit-learn's digits, writes scale.tflite, classify.tflite and golden.json beside itself.

They are committed, so the sample publishes as it is. After a change here, with the project's own environment:
PYTHONPATH=tests python deploy/sample-pipeline/make_sample.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from support import tflite_models

FOLDER = Path(__file__).parent
GOLDEN_ROWS = (0, 1, 2)


def main() -> None:
    digits = load_digits()
    pixels = digits.data.astype(np.uint8)
    scale, classify = tflite_models.scale(), tflite_models.trained()
    (FOLDER / "scale.tflite").write_bytes(scale)
    (FOLDER / "classify.tflite").write_bytes(classify)
    answers = run(classify, run(scale, pixels))
    cases = [
        {
            "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 64], "data": pixels[row].tolist()}],
            "outputs": [
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": [1, 10],
                    "data": [round(float(value), 6) for value in answers[row]],
                }
            ],
        }
        for row in GOLDEN_ROWS
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FOLDER / "golden.json").write_text(f'{{"cases": [\n{lines}\n]}}\n')
    accuracy = float((answers.argmax(axis=1) == digits.target).mean())
    print(f"accuracy {accuracy:.3f}, training data sha256:{hashlib.sha256(pixels.tobytes()).hexdigest()}")  # noqa: T201 - for release.toml


def run(model: bytes, given: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=model)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], given.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given)
    interpreter.invoke()
    answered: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return answered


if __name__ == "__main__":
    main()
