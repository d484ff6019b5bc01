"""Small real TFLite models, written without TensorFlow: the same digits as `digits_models` has in ONNX.

All take `image` FP32 [n, 64], pixels from 0 to 1, and answer `probabilities` FP32 [n, 10], unless they say otherwise. Buffer 0
is empty, data lies aligned to 16 bytes, and a model is the same bytes each time. Source of the schema:
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs (package `tflite`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import flatbuffers
import numpy as np
import tflite

from holdfast_shared.wire.release import Datatype
from support.digits_models import KINDS, PIXELS, fitted

ELEMENT_TYPES: Final[dict[Datatype, int]] = {
    "BOOL": tflite.TensorType.BOOL,
    "UINT8": tflite.TensorType.UINT8,
    "UINT16": tflite.TensorType.UINT16,
    "UINT32": tflite.TensorType.UINT32,
    "UINT64": tflite.TensorType.UINT64,
    "INT8": tflite.TensorType.INT8,
    "INT16": tflite.TensorType.INT16,
    "INT32": tflite.TensorType.INT32,
    "INT64": tflite.TensorType.INT64,
    "FP16": tflite.TensorType.FLOAT16,
    "FP32": tflite.TensorType.FLOAT32,
    "FP64": tflite.TensorType.FLOAT64,
    "BYTES": tflite.TensorType.STRING,
}
_ALIGNED: Final = 16
_SCHEMA_VERSION: Final = 3
# In the old byte-sized field, every operator above stands as this.
_OLD_CODE_MAX: Final = 127


class Held(NamedTuple):
    """A tensor of the graph. -1 in `shape` is a dimension of any size; `scale` makes it a quantised one (zero point 0)."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes = b""
    scale: float = 0.0


class Step(NamedTuple):
    """One operator on tensors by their place; `options` writes its options table, of kind `options_kind`."""

    operator: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_kind: int = 0
    options: Callable[[Any], int] | None = None


@functools.cache
def trained(strength: float = 0.05) -> bytes:
    """A logistic regression of the digits: the one of `digits_models.trained`."""
    weights, bias = fitted(strength)
    return model(
        [_image(), *_held_weights(weights, bias), _scores("z"), _scores("probabilities")], [_dense(0), _softmax()]
    )


@functools.cache
def quantised() -> bytes:
    """The same in whole numbers: `image` INT8 in 1/127ths, `scores` INT8."""
    weights, bias = fitted(0.05)
    by, into, out = float(np.abs(weights).max()) / 127, 1 / 127, 0.1
    whole = np.round(weights / by).astype(np.int8)
    offsets = np.round(bias / (by * into)).astype("<i4")
    tensors = [
        Held("image", "INT8", (-1, PIXELS), scale=into),
        Held("w", "INT8", (KINDS, PIXELS), np.ascontiguousarray(whole.T).tobytes(), by),
        Held("b", "INT32", (KINDS,), offsets.tobytes(), by * into),
        Held("scores", "INT8", (-1, KINDS), scale=out),
    ]
    return model(tensors, [_dense(0)])


@functools.cache
def raises_on_two() -> bytes:
    """Computes one image at a time; two make a reshape fail inside the model."""
    weights, bias = fitted(0.05)
    tensors = [_image(), *_held_weights(weights, bias), _scores("z"), _scores("flat"), _scores("probabilities")]
    tensors.append(Held("one_row", "INT32", (2,), np.array([1, KINDS], "<i4").tobytes()))
    reshape = Step(tflite.BuiltinOperator.RESHAPE, (4, 6), (5,))
    return model(tensors, [_dense(0), _softmax(), reshape], outputs=(5,))


@functools.cache
def echo(datatype: Datatype, rank: int = 1) -> bytes:
    """`given` in, `answered` out, unchanged: any datatype, any sizes, flat."""
    given = Held("given", datatype, (-1,) * rank)
    flat = Held("flat", "INT32", (1,), np.array([-1], "<i4").tobytes())
    reshape = Step(tflite.BuiltinOperator.RESHAPE, (0, 1), (2,))
    return model([given, flat, Held("answered", datatype, (-1,))], [reshape])


@functools.cache
def scale() -> bytes:
    """Preprocessing: `pixels` UINT8 [n, 64], from 0 to 16, to `image` FP32 [n, 64], from 0 to 1."""
    tensors = [
        Held("pixels", "UINT8", (-1, PIXELS)),
        Held("sixteenth", "FP32", (1,), np.array([1 / 16], "<f4").tobytes()),
        Held("floats", "FP32", (-1, PIXELS)),
        Held("image", "FP32", (-1, PIXELS)),
    ]

    def options(builder: Any) -> int:
        tflite.MulOptionsStart(builder)
        return int(tflite.MulOptionsEnd(builder))

    multiply = Step(tflite.BuiltinOperator.MUL, (2, 1), (3,), tflite.BuiltinOptions.MulOptions, options)
    return model(tensors, [Step(tflite.BuiltinOperator.CAST, (0,), (2,)), multiply])


def model(tensors: Sequence[Held], steps: Sequence[Step], *, outputs: Sequence[int] | None = None) -> bytes:
    """A graph as a TFLite file: the first tensor is asked for, the last one answered unless told otherwise."""
    builder = flatbuffers.Builder(4096)
    buffers = [_buffer(builder, b""), *(_buffer(builder, one.data) for one in tensors)]
    held = [_tensor(builder, one, place + 1 if one.data else 0) for place, one in enumerate(tensors)]
    codes = sorted({step.operator for step in steps})
    operators = [_operator(builder, step, codes.index(step.operator)) for step in steps]
    asked = _integers(builder, (0,))
    answered = _integers(builder, tuple(outputs) if outputs is not None else (len(tensors) - 1,))
    name, description = builder.CreateString("main"), builder.CreateString("holdfast-tests")
    all_tensors, all_operators = _offsets(builder, held), _offsets(builder, operators)
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, all_tensors)
    tflite.SubGraphAddInputs(builder, asked)
    tflite.SubGraphAddOutputs(builder, answered)
    tflite.SubGraphAddOperators(builder, all_operators)
    tflite.SubGraphAddName(builder, name)
    graphs = _offsets(builder, [tflite.SubGraphEnd(builder)])
    all_codes = _offsets(builder, [_code(builder, code) for code in codes])
    all_buffers = _offsets(builder, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, _SCHEMA_VERSION)
    tflite.ModelAddOperatorCodes(builder, all_codes)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddDescription(builder, description)
    tflite.ModelAddBuffers(builder, all_buffers)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _image() -> Held:
    return Held("image", "FP32", (-1, PIXELS))


def _scores(name: str) -> Held:
    return Held(name, "FP32", (-1, KINDS))


def _held_weights(weights: Any, bias: Any) -> tuple[Held, Held]:
    """As FULLY_CONNECTED wants them: a row for each answer."""
    rows = np.ascontiguousarray(weights.T.astype("<f4"))
    return Held("w", "FP32", (KINDS, PIXELS), rows.tobytes()), Held("b", "FP32", (KINDS,), bias.astype("<f4").tobytes())


def _dense(image: int) -> Step:
    def options(builder: Any) -> int:
        tflite.FullyConnectedOptionsStart(builder)
        return int(tflite.FullyConnectedOptionsEnd(builder))

    return Step(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        (image, 1, 2),
        (3,),
        tflite.BuiltinOptions.FullyConnectedOptions,
        options,
    )


def _softmax() -> Step:
    def options(builder: Any) -> int:
        tflite.SoftmaxOptionsStart(builder)
        tflite.SoftmaxOptionsAddBeta(builder, 1.0)
        return int(tflite.SoftmaxOptionsEnd(builder))

    return Step(tflite.BuiltinOperator.SOFTMAX, (3,), (4,), tflite.BuiltinOptions.SoftmaxOptions, options)


def _buffer(builder: Any, data: bytes) -> int:
    written = None
    if data:
        builder.StartVector(1, len(data), _ALIGNED)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        written = builder.EndVector()
    tflite.BufferStart(builder)
    if written is not None:
        tflite.BufferAddData(builder, written)
    return int(tflite.BufferEnd(builder))


def _tensor(builder: Any, held: Held, buffer: int) -> int:
    name = builder.CreateString(held.name)
    shape = _integers(builder, tuple(max(size, 1) for size in held.shape))
    signature = _integers(builder, held.shape) if -1 in held.shape else None
    quantisation = _quantisation(builder, held.scale) if held.scale else None
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, shape)
    tflite.TensorAddType(builder, ELEMENT_TYPES[held.datatype])
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddName(builder, name)
    if quantisation is not None:
        tflite.TensorAddQuantization(builder, quantisation)
    if signature is not None:
        tflite.TensorAddShapeSignature(builder, signature)
    return int(tflite.TensorEnd(builder))


def _quantisation(builder: Any, scale: float) -> int:
    tflite.QuantizationParametersStartScaleVector(builder, 1)
    builder.PrependFloat32(scale)
    scales = builder.EndVector()
    tflite.QuantizationParametersStartZeroPointVector(builder, 1)
    builder.PrependInt64(0)
    zero_points = builder.EndVector()
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scales)
    tflite.QuantizationParametersAddZeroPoint(builder, zero_points)
    return int(tflite.QuantizationParametersEnd(builder))


def _operator(builder: Any, step: Step, code: int) -> int:
    asked, answered = _integers(builder, step.inputs), _integers(builder, step.outputs)
    options = step.options(builder) if step.options is not None else None
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, code)
    tflite.OperatorAddInputs(builder, asked)
    tflite.OperatorAddOutputs(builder, answered)
    if options is not None:
        tflite.OperatorAddBuiltinOptionsType(builder, step.options_kind)
        tflite.OperatorAddBuiltinOptions(builder, options)
    return int(tflite.OperatorEnd(builder))


def _code(builder: Any, code: int) -> int:
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, _OLD_CODE_MAX))
    tflite.OperatorCodeAddVersion(builder, 1)
    tflite.OperatorCodeAddBuiltinCode(builder, code)
    return int(tflite.OperatorCodeEnd(builder))


def _integers(builder: Any, values: Sequence[int]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependInt32(value)
    return int(builder.EndVector())


def _offsets(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
