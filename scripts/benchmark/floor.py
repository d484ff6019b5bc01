"""The floor: one process of asyncio and httptools that runs the same session inline, and does nothing else.

No isolation, no counting, no failover, no limits: what serving a model over HTTP in Python costs at the very least.

    python -m benchmark.floor MODEL.onnx        prints its port
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httptools
import msgspec
import numpy as np

from holdfast_worker.onnx_runtime import OnnxRuntime, OnnxSession


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int = 0


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] = []
    parameters: _Parameters = _Parameters()


class _Body(msgspec.Struct):
    inputs: list[_Input]


_decoder = msgspec.json.Decoder(_Body)


class Floor(asyncio.Protocol):
    """One connection. What it is asked is taken to be right."""

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self._wanted = tuple(tensor.name for tensor in session.outputs)
        self._parser = httptools.HttpRequestParser(self)
        self._parts: list[bytes] = []
        self._header_length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._parts, self._header_length = [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._header_length = int(value)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        (wanted,) = _decoder.decode(body[: self._header_length] if self._header_length else body).inputs
        if self._header_length:
            array = np.frombuffer(body, np.float32, offset=self._header_length)
        else:
            array = np.array(wanted.data, np.float32)
        answer = self._session.run({wanted.name: array.reshape(wanted.shape)}, self._wanted)
        self._answer(answer, binary=self._header_length > 0)

    def _answer(self, found: Mapping[str, Any], *, binary: bool) -> None:
        described: list[dict[str, Any]] = []
        raw = b""
        for name, array in found.items():
            one = {"name": name, "datatype": "FP32", "shape": array.shape}
            if binary:
                part = array.tobytes()
                raw += part
                one["parameters"] = {"binary_data_size": len(part)}
            else:
                one["data"] = array.ravel().tolist()
            described.append(one)
        head = msgspec.json.encode({"model_name": "floor", "model_version": "1", "outputs": described})
        length = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
        start = f"HTTP/1.1 200 OK\r\n{length}Content-Length: {len(head) + len(raw)}\r\n\r\n"
        self._transport.write(start.encode() + head + raw)


async def serve(model: bytes) -> None:
    session = OnnxRuntime().load(model, threads=1)
    server = await asyncio.get_running_loop().create_server(lambda: Floor(session), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]).read_bytes()))
