"""One request through gateway and isolated worker, against the floor, MLServer, and no server at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmark import models, peers, questions
from benchmark.clients import Connection, throughput
from benchmark.rig import serving
from benchmark.table import Row
from holdfast_worker.onnx_runtime import OnnxRuntime
from support import digits_models
from support.installed_release import tensor

CONNECTIONS: Final = 8
WARM_UP: Final = 200
OURS: Final = "/v2/models/digits/infer"
# MLServer has no binary tensors; it is asked in JSON, as its clients do.
MLSERVER_RATIOS: Final = {0: 1 / 3, 1: 1 / 6}

Told = Callable[[str], None]


class Size(NamedTuple):
    """How much is measured. `rounds` alternate between the two, so that a machine that is busy at times is unfair to both."""

    rounds: int
    requests: int
    seconds: int


class Found(NamedTuple):
    """p50 and p99 in milliseconds, of all rounds; `ratio` is the median of the rounds' ratios of p50."""

    ours: npt.NDArray[np.float64]
    peer: npt.NDArray[np.float64]
    ratio: float


def small(folder: Path, size: Size, told: Told) -> Iterator[Row]:
    """The digits, a model of microseconds: nearly all that is measured is the way there and back."""
    model, picture = digits_models.trained(), digits_models.images()[:1]
    forms = {
        "binary": questions.binary(OURS, "image", picture, "probabilities"),
        "JSON": questions.as_json(OURS, "image", picture),
    }
    with serving(folder, model) as ours, peers.floor(model, folder) as floor:
        for form, message in forms.items():
            told(f"small request, {form}: one at a time")
            found = alternate(ours, floor, message, size)
            yield Row(
                what=f"one small request, {form}, p50",
                ours=_times(found.ours),
                peer=f"one process of asyncio + httptools: {_times(found.peer)}",
                ratio=found.ratio,
                target=2.0,
            )
            told(f"small request, {form}: {CONNECTIONS} connections")
            yield _throughput(ours, floor, message, size, form)
        if peers.PEERS_PYTHON.exists():
            yield from _mlserver(folder, ours, model, forms["JSON"], size, told)


def large(folder: Path, size: Size, told: Told) -> Iterator[Row]:
    """A tensor of 600 kB and a model of some milliseconds, against the same session called in process."""
    for channels, target in ((models.CLASSIFIER, 1.1), (models.SMALLEST, None)):
        model = models.convolutions(channels)
        weights = f"a model of {len(model) / 1e6:.0f} MB"
        told(f"600 kB tensor, binary, {weights}")
        mine, raw, ratio = _beside_raw(folder, model, max(10, size.requests // 20), size.rounds)
        yield Row(
            what=f"a 600 kB tensor, binary, {weights}, p50",
            ours=_times(mine),
            peer=f"the same session in process: {_times(raw)}",
            ratio=ratio,
            target=target,
        )


def _beside_raw(folder: Path, model: bytes, few: int, rounds: int) -> Found:
    picture = models.image()
    session = OnnxRuntime().load(model, threads=1)
    message = questions.binary(OURS, "image", picture, "scores")
    scores = session.run({"image": picture}, ("scores",))["scores"]
    golden = [{"inputs": [tensor("image", picture)], "outputs": [tensor("scores", scores)]}]
    with (
        serving(folder, model, inputs=(models.IMAGE,), outputs=(models.SCORES,), golden=golden) as ours,
        Connection(ours) as connection,
    ):
        connection.latencies(message, few)
        mine, raw, ratios = [], [], []
        for _ in range(rounds):
            mine.append(connection.latencies(message, few))
            raw.append(_timed(lambda: session.run({"image": picture}, ("scores",)), few))
            ratios.append(np.median(mine[-1]) / np.median(raw[-1]))
    return Found(np.concatenate(mine), np.concatenate(raw), float(np.median(ratios)))


def alternate(ours: tuple[str, int], peer: tuple[str, int], message: bytes, size: Size) -> Found:
    """Round by round, first one and then the other; the client on each core in turn.

    Whether client and server share a core halves a round trip or doubles it, and the scheduler leaves them where they happen
    to be: so no run is one of such luck.
    """
    mine, theirs, ratios = [], [], []
    cores = os.sched_getaffinity(0)
    with Connection(ours) as a, Connection(peer) as b, contextlib.ExitStack() as ending:
        ending.callback(os.sched_setaffinity, 0, cores)
        a.latencies(message, WARM_UP)
        b.latencies(message, WARM_UP)
        for _, core in zip(range(size.rounds), itertools.cycle(sorted(cores)), strict=False):
            os.sched_setaffinity(0, {core})
            mine.append(a.latencies(message, size.requests))
            theirs.append(b.latencies(message, size.requests))
            ratios.append(np.median(mine[-1]) / np.median(theirs[-1]))
    return Found(np.concatenate(mine), np.concatenate(theirs), float(np.median(ratios)))


def _throughput(ours: tuple[str, int], floor: tuple[str, int], message: bytes, size: Size, form: str) -> Row:
    mine, theirs = [], []
    for _ in range(size.rounds):
        mine.append(throughput(ours, message, connections=CONNECTIONS, seconds=size.seconds).requests_per_s)
        theirs.append(throughput(floor, message, connections=CONNECTIONS, seconds=size.seconds).requests_per_s)
    return Row(
        what=f"small requests, {form}, at {CONNECTIONS} connections",
        ours=f"{np.median(mine):,.0f} /s",
        peer=f"the same process: {np.median(theirs):,.0f} /s",
        ratio=float(np.median(np.array(mine) / np.array(theirs))),
        target=0.9 if form == "binary" else None,
        at_least=True,
    )


def _mlserver(
    folder: Path, ours: tuple[str, int], model: bytes, message: bytes, size: Size, told: Told
) -> Iterator[Row]:
    for workers, target in MLSERVER_RATIOS.items():
        told(f"MLServer with parallel_workers={workers}")
        with peers.mlserver(model, folder, parallel_workers=workers) as peer:
            found = alternate(ours, peer, message, size._replace(requests=max(20, size.requests // 10)))
        yield Row(
            what="one small request, JSON, p50",
            ours=_times(found.ours),
            peer=f"MLServer, `parallel_workers={workers}`: {_times(found.peer)}",
            ratio=found.ratio,
            target=round(target, 3),
        )


def _timed(call: Callable[[], object], times: int) -> npt.NDArray[np.float64]:
    found = np.empty(times)
    for index in range(times):
        begun = time.perf_counter_ns()
        call()
        found[index] = (time.perf_counter_ns() - begun) / 1e6
    return found


def _times(found: npt.NDArray[np.float64]) -> str:
    return f"{np.median(found):.2f} ms (p99 {np.quantile(found, 0.99):.2f})"
