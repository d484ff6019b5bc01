"""The worker process: one release, one socket, asks answered in order until it is told to stop or its gateway is gone.

Started by the gateway as `python -m holdfast_worker --fd N`; N is the inherited end of a socket pair.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from holdfast_shared.wire.report import Isolation
from holdfast_worker.channel import Channel, LostPlace, exit_when_peer_is_gone
from holdfast_worker.failures import LoadRefused
from holdfast_worker.protocol import (
    ASK_HEAD,
    LENGTH,
    OLDEST,
    VERSION,
    Failed,
    Hello,
    Kind,
    Load,
    Ready,
    answer_head,
    control,
    read_ask,
)

if TYPE_CHECKING:
    from holdfast_worker.isolation.confine import Begun
    from holdfast_worker.release_files import ReleaseFiles
    from holdfast_worker.release_runner import Runner

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_LOST_PLACE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker to its end; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m holdfast_worker",
        description="Serves one release over an inherited socket. Started by holdfast-gateway, not by people.",
    )
    parser.add_argument("--fd", type=int, required=True, help="the worker's end of a connected stream socket pair")
    descriptor: int = parser.parse_args(arguments).fd
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to hear: it drains, then stops its workers
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError as error:
        parser.error(f"--fd {descriptor} is no socket: {error.strerror}")
    with connection:
        connection.set_inheritable(False)
        connection.setblocking(True)
        try:
            return work(connection)
        except (BrokenPipeError, ConnectionResetError):
            return EXIT_DONE  # the gateway is gone
        except LostPlace as error:
            print(f"holdfast-worker: {error}", file=sys.stderr)
            return EXIT_LOST_PLACE


def work(connection: socket.socket) -> int:
    """HELLO, LOAD, READY or FAILED, then answers; the exit status."""
    channel = Channel(connection)
    channel.send(control(Kind.HELLO, Hello(version=VERSION, oldest=OLDEST, pid=os.getpid())))
    frame = channel.receive()
    if frame is None or frame[LENGTH.size] == Kind.STOP:
        return EXIT_DONE
    if frame[LENGTH.size] != Kind.LOAD:
        raise LostPlace(f"expected LOAD, found kind {frame[LENGTH.size]}")
    try:
        wanted = msgspec.json.decode(frame[LENGTH.size + 1 :], type=Load)
    except msgspec.DecodeError as error:
        raise LostPlace(f"LOAD cannot be read: {error}") from error
    started = time.perf_counter()
    try:
        begun = _begin_isolation(wanted)
        files = _read(wanted)
        isolation = _finish_isolation(begun, files.release.limits.memory_bytes_max)
        # Only now: a thread that ran before would have kept more of the view than the others.
        exit_when_peer_is_gone(connection)
        runner = _start(files, wanted)
    except LoadRefused as error:
        unknown = error.code == "unreadable" and not wanted.unreadable
        code = "damaged-blob" if unknown else error.code  # as it was called before there was a word for it
        channel.send(control(Kind.FAILED, Failed(code=code, detail=error.detail)))
        return EXIT_FAILED
    ready = Ready(
        inputs=runner.inputs,
        outputs=runner.outputs,
        fingerprint=runner.fingerprint,
        load_ms=round((time.perf_counter() - started) * 1000, 3),
        self_test_cases=runner.self_test_cases,
        isolation=isolation,
        measuring=runner.measuring,
    )
    channel.send(control(Kind.READY, ready))
    if wanted.shadows:
        from holdfast_worker import comparison  # noqa: PLC0415 - only a shadow needs it

        comparison.compare_all(channel, runner)
    else:
        serve(channel, runner, tells_measures=wanted.measures)
    return EXIT_DONE


def serve(channel: Channel, runner: Runner, *, tells_measures: bool = False) -> None:
    """Answer in order, until STOP (what was asked before it has been answered then) or until the gateway is gone."""
    channel.look_before_sleeping()
    asks, stops = int(Kind.ASK), int(Kind.STOP)  # a member of an enum takes longer to look up than to compare
    while (frame := channel.receive()) is not None:
        kind = frame[LENGTH.size]
        if kind == stops:
            return
        if kind != asks or len(frame) < ASK_HEAD.size:
            raise LostPlace(f"expected ASK or STOP, found kind {kind} in {len(frame)} bytes")
        ask = read_ask(frame)
        reply = runner.answer(ask.body, ask.header_length, ask.wants_binary)
        head = answer_head(
            ask.id,
            reply.outcome,
            header_length=reply.header_length,
            compute_us=min(reply.compute_us, 0xFFFFFFFF),
            body_bytes=sum(map(len, reply.parts)),
        )
        if tells_measures and reply.measured is not None:
            channel.send(control(Kind.MEASURED, reply.measured), head, *reply.parts)
        else:
            channel.send(head, *reply.parts)


def _read(wanted: Load) -> ReleaseFiles:
    """The verified bytes, with everything imported that will run them."""
    # Imported after HELLO: numpy and the runtime take longer than everything before them. Nothing here multiplies matrices
    # with numpy, so its BLAS needs no threads of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from holdfast_worker import release_runner  # noqa: PLC0415 - numpy and the runtime, after HELLO
    from holdfast_worker.runtime import runtime_named  # noqa: PLC0415 - with numpy, after the first stroke

    files = release_runner.read(
        Path(wanted.manifests),
        Path(wanted.blobs),
        wanted.release,
        environment=wanted.environment,
        accelerators=wanted.accelerators,
    )
    if files.release.pipeline != wanted.pipeline:
        raise LoadRefused(
            "load-failed", f"asked to load {wanted.pipeline}, the manifest is of {files.release.pipeline}"
        )
    for files_of in files.stages:
        runtime_named(files_of.variant.runtime)
    return files


def _begin_isolation(wanted: Load) -> Begun:
    """Before the runtime and its libraries are imported: in an environment of a publisher's they are a stranger's, too."""
    from holdfast_worker.isolation.confine import begin  # noqa: PLC0415 - with ctypes, which numpy would load anyway
    from holdfast_worker.isolation.plan import Asked  # noqa: PLC0415 - nobody else in this process needs it

    asked = Asked(nice=wanted.nice, off=frozenset(wanted.isolation_off), isolated=wanted.isolated)
    return begin(asked, tasks_max=wanted.tasks_max, reads=(Path(wanted.manifests), Path(wanted.blobs)))


def _finish_isolation(begun: Begun, memory_bytes_max: int) -> Isolation:
    """Before a stranger's model first computes, after all that needs more than a model may."""
    from holdfast_worker.isolation import limits  # noqa: PLC0415 - it is there by now

    needed = limits.memory_counted_bytes()
    if needed >= memory_bytes_max:
        raise LoadRefused(
            "load-failed",
            f"limits.memory_bytes_max is {memory_bytes_max}, and this worker holds {needed} before it has a model: raise it",
        )
    return begun.finish(memory_bytes_max=memory_bytes_max)


def _start(files: ReleaseFiles, wanted: Load) -> Runner:
    from holdfast_worker import release_runner  # noqa: PLC0415 - it is there by now

    return release_runner.start(files, threads=wanted.threads, delegates=wanted.delegates)
