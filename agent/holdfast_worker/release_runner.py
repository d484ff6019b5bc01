"""A release that runs in this process: loaded from verified bytes, self-tested, warm. Needs no socket.

A worker process serves one over its socket; the demo's light devices share one per digest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.release import Release, Tensor
from holdfast_worker import fingerprint, inference_response, installed, release_files, self_test
from holdfast_worker.accelerators import NONE as NO_DELEGATES
from holdfast_worker.failures import InputFault, LoadRefused, ModelRaised
from holdfast_worker.inference_request import Reader
from holdfast_worker.inference_response import Writer
from holdfast_worker.measures import Measures
from holdfast_worker.nulls import null_in
from holdfast_worker.protocol import NO_HEADER, Measured, Measuring, Outcome
from holdfast_worker.release_files import Folders, ReleaseFiles
from holdfast_worker.runtime import NAMES, NAMES_OF_SYSTEM, runtime_named
from holdfast_worker.stages import Stages
from holdfast_worker.tensors import DTYPES, Array

# One: a small device's other cores belong to the gateway and to the other slot.
THREADS: Final = 1
_OK, _NULL = Outcome.OK, Outcome.NULL  # a member of an enum takes longer to look up than all that is done with it


class Reply(NamedTuple):
    """One answer. `parts` are sent one after the other; `compute_us` is the model's time alone."""

    outcome: Outcome
    header_length: int
    compute_us: int
    parts: tuple[bytes | memoryview, ...]
    measured: Measured | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Runner:
    """A release, ready to answer. Keeps nothing of a request, so any number of threads may ask at once."""

    __slots__ = (
        "_measures",
        "_outputs",
        "_reader",
        "_sentinels",
        "_stages",
        "_writer",
        "digest",
        "fingerprint",
        "pipeline",
        "release",
        "self_test_cases",
        "version",
    )

    def __init__(self, files: ReleaseFiles, stages: Stages, measured: Mapping[str, str], self_test_cases: int) -> None:
        self.release: Release = files.release
        self.digest: str = files.digest
        self.pipeline: str = files.release.pipeline
        self.version: str = files.release.version
        self.fingerprint: dict[str, str] = dict(measured)
        self.self_test_cases = self_test_cases
        self._stages = stages
        inputs = {tensor.name: tensor for tensor in stages.inputs}
        self._outputs = {tensor.name: tensor for tensor in stages.outputs}
        self._reader = Reader(inputs, self._outputs)
        self._writer = Writer(self._outputs, model=self.pipeline, version=self.version)
        self._sentinels = _sentinels(files.release, self._outputs)
        self._measures = Measures(files.release, files.reference, inputs, self._outputs)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self._stages.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._stages.outputs

    @property
    def measuring(self) -> Measuring | None:
        """What it measures of every good answer, if it does."""
        return None if self._measures.none else self._measures.said

    def run(
        self, request: Mapping[str, Array], spent_us: dict[str, int] | None = None
    ) -> tuple[dict[str, Array], Outcome]:
        """The outputs, and whether they are OK or NULL; in `spent_us` how long each stage took.

        Raises ModelRaised, and InputFault for bytes that are no text.
        """
        outputs = self._stages.run(request, spent_us)
        null = null_in(outputs, self._outputs, self._sentinels)
        return outputs, _OK if null is None else _NULL

    def answer(self, body: bytes | bytearray | memoryview, header_length: int, wants_binary: bool) -> Reply:
        """What became of one `infer` request, and the body of its response. Raises nothing that a request can cause."""
        compute_us = 0
        measured = None
        try:
            request = self._reader.read(memoryview(body), header_length, wants_binary=wants_binary)
            spent_us: dict[str, int] | None = {} if request.stage_times else None
            started = time.perf_counter_ns()
            try:
                outputs, outcome = self.run(request.tensors, spent_us)
            finally:
                compute_us = (time.perf_counter_ns() - started) // 1000
            found = self._writer.answered(request, outputs, spent_us)
            if outcome is _OK and not self._measures.none:
                measured = self._measures.of(request.id, request.tensors, outputs)
        except InputFault as error:
            found, outcome = inference_response.failed(error), Outcome.INPUT_FAULT
        except ModelRaised as error:
            found, outcome = inference_response.failed(error), Outcome.ERROR
        return Reply(outcome, found.header_length, compute_us, found.parts, measured)


def load(
    manifests: Path, blobs: Path, digest: str, *, environment: str = SYSTEM_ENVIRONMENT, threads: int = THREADS
) -> Runner:
    """Verify, load, self-test and warm up. Raises LoadRefused. Both folders name files by the hex digits of their digest."""
    return start(read(manifests, blobs, digest, environment=environment), threads=threads)


def read(
    manifests: Path,
    blobs: Path,
    digest: str,
    *,
    environment: str = SYSTEM_ENVIRONMENT,
    accelerators: Iterable[str] = (),
) -> ReleaseFiles:
    """The release's verified bytes: the first half of `load`. Raises LoadRefused."""
    runtimes = NAMES_OF_SYSTEM if environment == SYSTEM_ENVIRONMENT else NAMES
    machine = replace(installed.machine(accelerators), runtimes=runtimes)
    return release_files.read(Folders(manifests, blobs), digest, environment=environment, machine=machine)


def start(files: ReleaseFiles, *, threads: int = THREADS, delegates: Mapping[str, str] = NO_DELEGATES) -> Runner:
    """A runner of verified bytes: the second half of `load`, where a hostile model first gets to compute."""
    runtimes = [runtime_named(files_of.variant.runtime, delegates) for files_of in files.stages]
    sessions = [
        runtime.load(files_of.model, threads=threads, declared=files_of.variant)
        for runtime, files_of in zip(runtimes, files.stages, strict=True)
    ]
    stages = Stages(files.release, files.stages, sessions)
    cases = self_test.check(stages, files.release.self_test, files.cases)
    return Runner(files, stages, fingerprint.measure(runtimes), cases)


def _sentinels(release: Release, outputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """Each as an array of one, of its output's datatype, so that no comparison has to convert."""
    found = {}
    for name, value in release.sentinels.items():
        tensor = outputs.get(name)
        if tensor is None:
            raise LoadRefused("load-failed", f"sentinels.{name} is no output; there are {', '.join(outputs)}")
        if tensor.datatype == "BYTES":
            raise LoadRefused("not-supported", f"sentinels.{name}: a sentinel of BYTES is not supported yet")
        try:
            with np.errstate(over="ignore"):
                sentinel: Array = np.array([value]).astype(DTYPES[tensor.datatype])
                same = bool(np.isclose(float(sentinel[0]), value))
        except (OverflowError, ValueError) as error:
            raise LoadRefused("load-failed", f"sentinels.{name}: {value} does not fit {tensor.datatype}") from error
        if not same:
            raise LoadRefused("load-failed", f"sentinels.{name}: {tensor.datatype} cannot be {value}")
        found[name] = sentinel
    return found


__all__ = ["NO_HEADER", "LoadRefused", "Outcome", "Reply", "Runner", "load", "read", "start"]
