"""A release that runs in process, and what it is asked: bodies of `infer` requests, in JSON and in binary."""

from __future__ import annotations

import json
from typing import Any

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.release import Datatype, Tensor
from holdfast_worker import release_runner
from holdfast_worker.protocol import NO_HEADER
from holdfast_worker.release_runner import Reply, Runner
from holdfast_worker.tensors import Array
from support import digits_models
from support.installed_release import install, tensor

# One and two elements of the datatypes that numbers are not.
ONE: dict[str, list[Any]] = {"BOOL": [True], "BYTES": ["a"]}
TWO: dict[str, list[Any]] = {"BOOL": [True, False], "BYTES": ["", "grün"]}


def runner_of(state: StateFolder, model: bytes, **details: Any) -> Runner:
    ref = install(state, "digits", "1.2.3", model, **details)
    return release_runner.load(state.manifests, state.blobs, ref.digest)


def echo_runner(state: StateFolder, datatype: Datatype, rank: int = 1) -> Runner:
    shape = (-1,) * rank
    data = ONE.get(datatype, [1])
    case = {"datatype": datatype, "shape": [1] * rank, "data": data}
    return runner_of(
        state,
        digits_models.echo(datatype, rank),
        inputs=(Tensor(name="given", datatype=datatype, shape=shape),),
        outputs=(Tensor(name="answered", datatype=datatype, shape=shape),),
        golden=[{"inputs": [{"name": "given", **case}], "outputs": [{"name": "answered", **case}]}],
    )


def image(rows: int = 1) -> Array:
    return digits_models.images()[:rows]


def ask(**changes: Any) -> bytes:
    return json.dumps({"inputs": [tensor("image", image())], **changes}).encode()


def ask_in_binary(values: Array, **changes: Any) -> tuple[bytes, int]:
    """(body, header length) of the binary tensor extension."""
    described = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(values.shape),
        "parameters": {"binary_data_size": values.nbytes},
    }
    header = json.dumps({"inputs": [described], **changes}).encode()
    return header + values.tobytes(), len(header)


def body_of(reply: Reply) -> dict[str, Any]:
    header = reply.body if reply.header_length == NO_HEADER else reply.body[: reply.header_length]
    found: dict[str, Any] = json.loads(header)
    return found
