"""Inference requests as whole HTTP messages, made once: what a client sends again and again."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt


def binary(path: str, name: str, values: npt.NDArray[np.float32], output: str) -> bytes:
    """With raw tensors there and back."""
    raw = values.tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(values.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    return _message(path, header + raw, f"Inference-Header-Content-Length: {len(header)}\r\n")


def as_json(path: str, name: str, values: npt.NDArray[np.float32]) -> bytes:
    """With numbers as text, there and back."""
    tensor = {"name": name, "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return _message(path, json.dumps({"inputs": [tensor]}).encode(), "Content-Type: application/json\r\n")


def _message(path: str, body: bytes, more: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body
