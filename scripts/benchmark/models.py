"""The models that are timed beside the real one of microseconds: two that take an image of 600 kB and some milliseconds."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from holdfast_shared.wire.release import Tensor

SIDE: Final = 224
IMAGE: Final = Tensor(name="image", datatype="FP32", shape=(-1, 3, SIDE, SIDE))
SCORES: Final = Tensor(name="scores", datatype="FP32", shape=(-1, 1000))
# Weights of 14 MB, as a small classifier of photographs has, and of 3 MB, as the smallest has.
CLASSIFIER: Final = (3, 32, 96, 256, 960)
SMALLEST: Final = (3, 32, 64, 128, 256)


def image() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """602,112 bytes."""
    return np.random.default_rng(7).random((1, 3, SIDE, SIDE), dtype=np.float32)


def convolutions(channels: tuple[int, ...]) -> bytes:
    """Strided convolutions from as many channels to as many, a mean and a matrix, with weights from a fixed seed."""
    random = np.random.default_rng(11)
    nodes, constants, last = [], [], "image"
    for index, (into, out) in enumerate(itertools.pairwise(channels)):
        weights = (random.standard_normal((out, into, 3, 3)) * np.sqrt(2 / (into * 9))).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last = f"r{index}"
    matrix = (random.standard_normal((channels[-1], 1000)) * 0.05).astype(np.float32)
    constants.append(numpy_helper.from_array(matrix, "m"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "m"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1000])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())
