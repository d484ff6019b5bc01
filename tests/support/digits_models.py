"""Small real ONNX models (in TFLite: `tflite_models`): one of scikit-learn's scanned digits, and some that go wrong in one way.

All take `image` FP32 [n, 64], pixels from 0 to 1, and answer `probabilities` FP32 [n, 10], unless they say otherwise. IR
version and operators are pinned to what small devices' runtimes read. Each is made once a session.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from holdfast_shared.wire.release import Datatype, Tensor

PIXELS: Final = 64
KINDS: Final = 10
INPUTS: Final = (Tensor(name="image", datatype="FP32", shape=(-1, PIXELS)),)
OUTPUTS: Final = (Tensor(name="probabilities", datatype="FP32", shape=(-1, KINDS)),)
# Some images leave this column empty; the models `…_on_some` go wrong on those.
COLUMN: Final = 1

ELEMENT_TYPES: Final[dict[Datatype, int]] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Floats = npt.NDArray[np.float32]


@functools.cache
def images() -> Floats:
    """All 1797 scanned digits, a row each."""
    found: Floats = (load_digits().data / 16).astype(np.float32)
    return found


@functools.cache
def labels() -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = load_digits().target.astype(np.int64)
    return found


def blank_images() -> Floats:
    """Those on which the models `…_on_some` go wrong."""
    found: Floats = images()[~_inked()]
    return found


def inked_images() -> Floats:
    """The others."""
    found: Floats = images()[_inked()]
    return found


@functools.cache
def trained(strength: float = 0.05) -> bytes:
    """A logistic regression of the digits; another `strength` is another, equally honest release of it."""
    weights, bias = fitted(strength)
    return model(
        [node("Gemm", ["image", "w", "b"], ["z"]), node("Softmax", ["z"], ["probabilities"])],
        constants={"w": weights, "b": bias},
    )


@functools.cache
def nan_on_some() -> bytes:
    """NaN on `blank_images`, by a standardisation that is 0 / 0 there; as good as `trained` on the others."""
    return _after_scores(
        [*_INK, node("Div", ["ink", "ink"], ["one"]), node("Mul", ["scores", "one"], ["probabilities"])]
    )


@functools.cache
def infinite_on_some() -> bytes:
    """+inf on `blank_images`."""
    return _after_scores([*_INK, node("Div", ["scores", "ink"], ["probabilities"])])


@functools.cache
def empty_on_some() -> bytes:
    """Leaves out the rows of `blank_images`: of one such image, no row is left."""
    return _after_scores(
        [
            *_INK,
            node("Greater", ["ink", "zero"], ["there"]),
            node("Squeeze", ["there", "axes"], ["rows"]),
            node("Compress", ["scores", "rows"], ["probabilities"], axis=0),
        ],
        zero=np.float32(0),
    )


@functools.cache
def constant(value: float) -> bytes:
    """The same number everywhere: what a sentinel looks like."""
    return _after_scores(
        [node("Mul", ["scores", "zero"], ["nothing"]), node("Add", ["nothing", "value"], ["probabilities"])],
        zero=np.float32(0),
        value=np.float32(value),
    )


@functools.cache
def raises_on_two() -> bytes:
    """Computes one image at a time; two make a reshape fail inside the model."""
    return _after_scores(
        [node("Reshape", ["scores", "one_row"], ["probabilities"])], one_row=np.array([1, KINDS], dtype=np.int64)
    )


@functools.cache
def raises_on_some() -> bytes:
    """Looks up the last of no entries for `blank_images`, which fails inside the model; answers the others like `trained`."""
    return _after_scores(
        [
            *_BLANK,
            node("Where", ["blank", "no_entry", "first_entry"], ["entry"]),
            node("Gather", ["entries", "entry"], ["nothing"]),
            node("Add", ["scores", "nothing"], ["probabilities"]),
        ],
        zero=np.float32(0),
        no_entry=np.array(9, dtype=np.int64),
        first_entry=np.array(0, dtype=np.int64),
        entries=np.zeros(1, dtype=np.float32),
    )


@functools.cache
def slow(rounds: int) -> bytes:
    """Takes its time before it answers: `rounds` of 10^8 multiply-adds, a few ms each."""
    return _after_scores([node("Constant", [], ["rounds"], value_int=rounds), *_busy()], **_BUSY_CONSTANTS)


@functools.cache
def hangs_on_some() -> bytes:
    """Answers like `trained`, but for `blank_images`, over which it computes for ever."""
    return slow_on_some(2**62)


@functools.cache
def slow_on_some(rounds: int) -> bytes:
    """Answers like `trained`, but takes its time over `blank_images`: `rounds` as in `slow`."""
    return _after_scores(
        [*_BLANK, node("Where", ["blank", "many", "once"], ["rounds"]), *_busy()],
        many=np.array(rounds),
        once=np.array(1),
        **_BUSY_CONSTANTS,
    )


@functools.cache
def allocates_on_some(size_bytes: int) -> bytes:
    """Answers like `trained`, but first asks for so much memory, and touches all of it, for `blank_images`."""
    return _after_scores(
        [
            *_BLANK,
            node("Where", ["blank", "many", "one"], ["count"]),
            node("Expand", ["least", "count"], ["large"]),
            node("ReduceMax", ["large"], ["most"], keepdims=0),
            node("Mul", ["most", "zero"], ["none"]),
            node("Add", ["scores", "none"], ["probabilities"]),
        ],
        zero=np.float32(0),
        many=np.array([size_bytes // 4], dtype=np.int64),
        one=np.array([1], dtype=np.int64),
    )


@functools.cache
def echo(datatype: Datatype, rank: int = 1) -> bytes:
    """`given` in, `answered` out, unchanged: any datatype, any sizes."""
    shape = [f"d{index}" for index in range(rank)]
    kind = ELEMENT_TYPES[datatype]
    return model(
        [node("Identity", ["given"], ["answered"])],
        inputs=[helper.make_tensor_value_info("given", kind, shape)],
        outputs=[helper.make_tensor_value_info("answered", kind, shape)],
    )


def tensor(name: str, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
    """A manifest's declaration."""
    return Tensor(name=name, datatype=datatype, shape=shape)


def pixels(name: str) -> Any:
    """The declaration of a tensor as large as the image."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", PIXELS])


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[Any],
    *,
    constants: dict[str, Any] | None = None,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
) -> bytes:
    """A graph as an ONNX file; `image` and `probabilities` unless told otherwise."""
    graph = helper.make_graph(
        list(nodes),
        "digits",
        list(inputs or [pixels("image")]),
        list(outputs or [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["m", KINDS])]),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="holdfast-tests"
    )
    return bytes(made.SerializeToString())


_SIDE: Final = 464
_BUSY_CONSTANTS: Final[dict[str, Any]] = {
    "size": np.array([_SIDE, _SIDE], dtype=np.int64),
    "true": np.array(True),
    "zero": np.float32(0),
}


def _busy() -> list[Any]:
    """`rounds` matrix products between `scores` and the answer, which they do not change."""
    body = helper.make_graph(
        [
            node("MatMul", ["square", "square"], ["product"]),
            node("Mul", ["product", "tiny"], ["next"]),
            node("Identity", ["go"], ["going"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("square", TensorProto.FLOAT, [_SIDE, _SIDE]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [_SIDE, _SIDE]),
        ],
        [numpy_helper.from_array(np.asarray(1 / _SIDE, dtype=np.float32), "tiny")],
    )
    return [
        node("ReduceMax", ["scores"], ["most"], keepdims=0),
        node("Expand", ["most", "size"], ["start"]),
        node("Loop", ["rounds", "true", "start"], ["end"], body=body),
        node("ReduceMax", ["end"], ["last"], keepdims=0),
        node("Mul", ["last", "zero"], ["none"]),
        node("Add", ["scores", "none"], ["probabilities"]),
    ]


_INK: Final = (
    node("Gather", ["image", "columns"], ["column"], axis=1),
    node("ReduceSum", ["column", "axes"], ["ink"], keepdims=1),
)

# A batch counts as blank when one of its images is. Needs the constant `zero`.
_BLANK: Final = (
    *_INK,
    node("ReduceMin", ["ink"], ["least"], keepdims=0),
    node("Equal", ["least", "zero"], ["blank"]),
)


def _inked() -> npt.NDArray[np.bool_]:
    return np.asarray(images()[:, COLUMN::8].sum(axis=1) > 0)


@functools.cache
def fitted(strength: float) -> tuple[Floats, Floats]:
    """Weights [64, 10] and bias [10] of a logistic regression of the digits."""
    with threadpool_limits(1):  # for matrices this small, several threads wait for each other: ten times the processor
        fitted = LogisticRegression(C=strength, max_iter=500).fit(images(), labels())
    return fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)


def _after_scores(nodes: Sequence[Any], **constants: Any) -> bytes:
    """The trained model's probabilities as `scores`, and what becomes of them."""
    weights, bias = fitted(0.05)
    columns, axes = np.arange(COLUMN, PIXELS, 8, dtype=np.int64), np.array([1], dtype=np.int64)
    return model(
        [node("Gemm", ["image", "w", "b"], ["z"]), node("Softmax", ["z"], ["scores"]), *nodes],
        constants={"w": weights, "b": bias, "columns": columns, "axes": axes, **constants},
    )
