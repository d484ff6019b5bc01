"""A worker without a model, for faults on demand: `python stand_in_worker.py --fd N` speaks the frames of a real one.

A request's body says what becomes of it, by release version: `{"id": "7", "do": {"1.2.0": "crash"}}`; `"*"` is every other
version, and what is not named is answered well. One of: ok, null, error, fault, crash, hang, garbage, wrong-id, slow:<ms>,
big:<bytes>, break:<ms> (its connection ends, itself by SIGSEGV so much later), leave:<ms> (the same, once it has answered).
A release's annotations say how it loads: `{"load": "ok" | "crash" | "hang" | "slow:<ms>" | "fail:<code>"}`, and
what becomes of requests that say nothing: `{"do": "…"}`. STAND_IN_VERSION is the protocol's version that it
claims, STAND_IN_OLDEST the oldest it claims besides.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from holdfast_shared.wire.release import Tensor
from holdfast_worker import protocol
from holdfast_worker.protocol import NO_HEADER, Ask, Compared, Failed, Hello, Kind, Load, Outcome, Ready


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().fd) as gateway, gateway.makefile("rb") as stream:
        version = os.environ.get("STAND_IN_VERSION", str(protocol.VERSION))
        oldest = os.environ.get("STAND_IN_OLDEST")
        hello = Hello(version=int(version), oldest=int(oldest) if oldest else None, pid=os.getpid())
        gateway.sendall(protocol.control(Kind.HELLO, hello))
        frame = _next_frame(stream)
        if frame is not None:
            release = _load(gateway, msgspec.json.decode(frame[5:], type=Load))
            _answer_all(gateway, stream, release)


def _load(gateway: socket.socket, load: Load) -> dict[str, Any]:
    raw = json.loads((Path(load.manifests) / load.release.removeprefix("sha256:")).read_bytes())
    release: dict[str, Any] = json.loads(base64.b64decode(raw["payload"]))
    how, _, detail = str(release["annotations"].get("load", "ok")).partition(":")
    match how:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "slow":
            time.sleep(int(detail) / 1000)
        case "fail":
            failed = Failed(code=detail, detail="as it was told")
            gateway.sendall(protocol.control(Kind.FAILED, failed))
            sys.exit(1)
    sys.stderr.write(f"stand-in for {release['version']} is ready\n")
    sys.stderr.flush()
    ready = Ready(
        inputs=(Tensor(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(Tensor(name="y", datatype="FP32", shape=(-1, 2)),),
        fingerprint={"runtime": "stand-in", "protocol": str(load.version)},
        load_ms=1.0,
        self_test_cases=1,
    )
    gateway.sendall(protocol.control(Kind.READY, ready))
    return release


def _answer_all(gateway: socket.socket, stream: IO[bytes], release: dict[str, Any]) -> None:
    while (frame := _next_frame(stream)) is not None:
        if frame[4] == Kind.STOP:
            return
        if frame[4] == Kind.COMPARE:
            gateway.sendall(protocol.control(Kind.COMPARED, _compare(gateway, frame, release)))
            continue
        ask = protocol.read_ask(frame)
        outcome, header_length, body = _answer(gateway, ask, release)
        head = protocol.answer_head(ask.id, outcome, header_length=header_length, compute_us=10, body_bytes=len(body))
        gateway.sendall(head + body)


def _answer(gateway: socket.socket, ask: Ask, release: dict[str, Any]) -> tuple[Outcome, int, bytes]:
    length = len(ask.body) if ask.header_length == NO_HEADER else ask.header_length
    try:
        asked = json.loads(bytes(ask.body[:length]))
        do = asked.get("do", {})
    except (ValueError, AttributeError):
        return Outcome.INPUT_FAULT, NO_HEADER, b'{"error": "the body is no JSON object"}'
    what = do.get(release["version"], do.get("*", release["annotations"].get("do", "ok")))
    what, _, amount = what.partition(":")
    answer = {"model_name": release["pipeline"], "model_version": release["version"], "id": asked.get("id", "")}
    answer |= {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}], "pid": os.getpid()}
    match what:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "break":
            _break(gateway, int(amount))
        case "wrong-id":
            gateway.sendall(protocol.answer_head(ask.id + 1, Outcome.OK, header_length=2, compute_us=0, body_bytes=0))
        case "garbage":
            gateway.sendall(b"\xff" * 64)
        case "slow":
            time.sleep(int(amount) / 1000)
        case "big":
            answer["padding"] = "x" * int(amount)
        case "error":
            return Outcome.ERROR, NO_HEADER, json.dumps({"error": f"{release['version']} raised"}).encode()
        case "fault":
            return Outcome.INPUT_FAULT, NO_HEADER, json.dumps({"error": "input x is missing"}).encode()
    body = json.dumps(answer).encode()
    outcome = Outcome.NULL if what == "null" else Outcome.OK
    if what == "leave":
        head = protocol.answer_head(ask.id, outcome, header_length=NO_HEADER, compute_us=10, body_bytes=len(body))
        gateway.sendall(head + body)
        _break(gateway, int(amount))
    if ask.header_length == NO_HEADER:
        return outcome, NO_HEADER, body
    return outcome, len(body), body + bytes(ask.body[length:])


def _break(gateway: socket.socket, lives_on_ms: int) -> None:
    gateway.shutdown(socket.SHUT_RDWR)
    time.sleep(lives_on_ms / 1000)  # what the request asked for: a process that outlives its connection
    os.kill(os.getpid(), signal.SIGSEGV)


def _compare(gateway: socket.socket, frame: memoryview, release: dict[str, Any]) -> Compared:
    """Of one row, which agrees unless it is told to `differ`; nothing is comparable that is `other`."""
    asked = protocol.read_compare(frame)
    ask = Ask(asked.id, False, asked.request_header_length, asked.request)
    outcome, _, _ = _answer(gateway, ask, release)
    what = json.loads(bytes(asked.request)).get("do", {}).get(release["version"], "ok")
    rows = int(outcome is Outcome.OK and what != "other")
    return Compared(
        id=asked.id, outcome=outcome, compute_us=20, rows=rows, agreed=int(rows and what != "differ"), difference=0
    )


def _next_frame(stream: IO[bytes]) -> memoryview | None:
    length = stream.read(protocol.LENGTH.size)
    if len(length) < protocol.LENGTH.size:
        return None
    return memoryview(length + stream.read(protocol.LENGTH.unpack(length)[0]))


if __name__ == "__main__":
    main()
