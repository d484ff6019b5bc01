"""A real worker process at the other end of a socket pair, spoken to as the gateway does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_worker import protocol
from holdfast_worker.protocol import Kind, Outcome
from support import digits_models
from support.installed_release import golden_cases, install, tensor
from support.worker_process import DEADLINE_S, WorkerProcess, running_worker

pytestmark = pytest.mark.slow


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with running_worker() as found:
        yield found


@pytest.fixture
def good(state: StateFolder) -> ReleaseRef:
    return install(state, "digits", "1.0.0", digits_models.trained())


def body(row: int = 0, count: int = 1) -> bytes:
    images = digits_models.images()[row : row + count]
    return json.dumps({"id": str(row), "inputs": [tensor("image", images)]}).encode()


# ---------------------------------------------------------------- loading
def test_hello_comes_before_anything_is_asked(worker: WorkerProcess) -> None:
    hello = worker.hello()
    assert hello.version == protocol.VERSION
    assert hello.pid == worker.process.pid


def test_ready_says_what_was_loaded(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    ready = worker.load(state, good.digest)
    assert ready.inputs == digits_models.INPUTS
    assert ready.outputs == digits_models.OUTPUTS
    assert ready.self_test_cases == 2
    assert ready.load_ms > 0
    assert ready.fingerprint["runtime"].startswith("onnxruntime ")


def test_a_damaged_blob_fails_and_ends_the_worker(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    for path in state.blobs.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert worker.failure(state, good.digest).code == "damaged-blob"


def test_a_failed_self_test_ends_the_worker_before_it_is_ready(worker: WorkerProcess, state: StateFolder) -> None:
    images = digits_models.images()[:1]
    wrong = {"inputs": [tensor("image", images)], "outputs": [tensor("probabilities", np.ones((1, 10), np.float32))]}
    ref = install(state, "digits", "1.0.0", digits_models.trained(), golden=[wrong])
    failed = worker.failure(state, ref.digest)
    assert failed.code == "self-test-failed"
    assert failed.detail.startswith("cases[0]: output probabilities[0] is ")


def test_what_is_not_onnx_fails_to_load(worker: WorkerProcess, state: StateFolder) -> None:
    ref = install(state, "digits", "1.0.0", b"not a model", golden=[])
    assert worker.failure(state, ref.digest).code == "load-failed"


def test_another_environment_is_not_supported(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    assert worker.failure(state, good.digest, environment=good.digest).code == "not-supported"


def test_a_release_of_another_pipeline_is_refused(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    failed = worker.failure(state, good.digest, pipeline="letters")
    assert failed.code == "load-failed"
    assert "letters" in failed.detail


# ---------------------------------------------------------------- answering
def test_asks_ahead_are_answered_in_order(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    for number in range(50):
        worker.ask(body(number) if number % 5 else b"{", number=number)
    for number in range(50):
        answer = worker.answer()
        assert answer.id == number
        assert answer.outcome == (Outcome.OK if number % 5 else Outcome.INPUT_FAULT)
        assert ("error" in json.loads(bytes(answer.body))) == (number % 5 == 0)


def test_every_outcome_comes_over_the_socket(worker: WorkerProcess, state: StateFolder) -> None:
    ref = install(state, "digits", "1.0.0", digits_models.nan_on_some())
    worker.load(state, ref.digest)
    blank = json.dumps({"inputs": [tensor("image", digits_models.blank_images()[:1])]}).encode()
    inked = json.dumps({"inputs": [tensor("image", digits_models.inked_images()[:1])]}).encode()
    for asked, outcome in ((inked, Outcome.OK), (blank, Outcome.NULL), (b"", Outcome.INPUT_FAULT), (inked, Outcome.OK)):
        worker.ask(asked)
        assert worker.answer().outcome == outcome


def test_a_model_that_raises_is_an_error_and_the_worker_goes_on(worker: WorkerProcess, state: StateFolder) -> None:
    ref = install(state, "digits", "1.0.0", digits_models.raises_on_two())
    worker.load(state, ref.digest)
    for count, outcome in ((2, Outcome.ERROR), (1, Outcome.OK)):
        worker.ask(body(count=count))
        assert worker.answer().outcome == outcome


def test_binary_tensors_come_back_binary(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    images = digits_models.images()[:5]
    described = {
        "name": "image",
        "datatype": "FP32",
        "shape": [5, 64],
        "parameters": {"binary_data_size": images.nbytes},
    }
    header = json.dumps({"inputs": [described]}).encode()
    worker.ask(header + images.tobytes(), header_length=len(header), wants_binary=True)
    answer = worker.answer()
    raw = bytes(answer.body[answer.header_length :])
    found = np.frombuffer(raw, dtype=np.float32).reshape(5, 10)
    assert found.argmax(axis=1).tolist() == digits_models.labels()[:5].tolist()
    assert json.loads(bytes(answer.body[: answer.header_length]))["outputs"][0]["parameters"] == {
        "binary_data_size": 200
    }


def test_a_frame_may_be_larger_than_every_buffer_and_come_in_pieces(worker: WorkerProcess, state: StateFolder) -> None:
    """20 MB in and out again: past the socket's buffer and past what the worker keeps; then small ones go on."""
    case = {"name": "given", "datatype": "FP32", "shape": [1], "data": [1.0]}
    tensors = [digits_models.tensor(name, "FP32", (-1,)) for name in ("given", "answered")]
    ref = install(
        state,
        "digits",
        "1.0.0",
        digits_models.echo("FP32"),
        inputs=(tensors[0],),
        outputs=(tensors[1],),
        golden=[{"inputs": [case], "outputs": [{**case, "name": "answered"}]}],
    )
    worker.load(state, ref.digest)
    for count in (5_000_000, 1, 40_000, 5_000_000, 3):
        values = np.arange(count, dtype=np.float32)
        described = {
            "name": "given",
            "datatype": "FP32",
            "shape": [count],
            "parameters": {"binary_data_size": values.nbytes},
        }
        header = json.dumps({"inputs": [described]}).encode()
        worker.ask(header + values.tobytes(), header_length=len(header), wants_binary=True)
        answer = worker.answer()
        assert answer.outcome == Outcome.OK
        assert bytes(answer.body[answer.header_length :]) == values.tobytes()


def test_a_frame_that_comes_byte_by_byte_is_whole_in_the_end(
    worker: WorkerProcess, state: StateFolder, good: ReleaseRef
) -> None:
    worker.load(state, good.digest)
    asked = body()
    head = protocol.ask_head(3, wants_binary=False, header_length=protocol.NO_HEADER, body_bytes=len(asked))
    for octet in head + asked:
        worker.socket.sendall(bytes([octet]))
    assert worker.answer().id == 3


# ---------------------------------------------------------------- the end
def test_stop_answers_what_was_asked_before_it(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    for number in range(20):
        worker.ask(body(number), number=number)
    worker.stop()
    assert [worker.answer().id for _ in range(20)] == list(range(20))
    assert worker.frame() is None
    assert worker.exit_status() == 0


def test_stop_before_load_ends_it(worker: WorkerProcess) -> None:
    worker.hello()
    worker.stop()
    assert worker.exit_status() == 0


def test_the_gateways_end_is_the_workers_end(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    worker.socket.close()
    assert worker.exit_status() == 0


def test_a_model_that_never_returns_does_not_outlive_its_gateway(worker: WorkerProcess, state: StateFolder) -> None:
    """It is computing, and reads no end of file; it must not stay behind holding memory."""
    ref = install(state, "digits", "1.0.0", digits_models.hangs_on_some(), golden=golden_cases(digits_models.trained()))
    worker.load(state, ref.digest)
    worker.ask(json.dumps({"inputs": [tensor("image", digits_models.blank_images()[:1])]}).encode())
    watched = psutil.Process(worker.process.pid)
    _wait_until_it_computes(watched)
    worker.socket.close()
    assert worker.exit_status() == 0


def test_a_killed_worker_is_the_end_of_its_stream(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.frame() is None


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\x63",
        b"\x00\x00\x00\x02" + bytes([Kind.ASK]) + b"x",
        b"\x00\x00\x00\x02" + bytes([Kind.LOAD]) + b"{",
    ],
)
def test_a_peer_that_lost_its_place_ends_the_worker_with_a_word(
    worker: WorkerProcess, state: StateFolder, good: ReleaseRef, frame: bytes
) -> None:
    worker.load(state, good.digest)
    worker.socket.sendall(frame)
    assert worker.exit_status() == 3
    assert worker.process.stderr is not None
    said = worker.process.stderr.read().decode()
    assert said.startswith("holdfast-worker: ")
    assert "Traceback" not in said


def test_ctrl_c_is_for_the_gateway(worker: WorkerProcess, state: StateFolder, good: ReleaseRef) -> None:
    worker.load(state, good.digest)
    worker.process.send_signal(signal.SIGINT)
    worker.ask(body())
    assert worker.answer().outcome == Outcome.OK


def test_a_descriptor_that_is_no_socket_is_told_on_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_worker", "--fd", "0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert "is no socket" in done.stderr


def test_a_worker_does_not_spin_while_nothing_is_asked(
    worker: WorkerProcess, state: StateFolder, good: ReleaseRef
) -> None:
    worker.load(state, good.digest)
    for number in range(200):
        worker.ask(body(number))
        worker.answer()
    watched = psutil.Process(worker.process.pid)
    before = watched.cpu_times()
    worker.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):  # half a second in which it says nothing
        worker.frame()
    after = watched.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1


def _wait_until_it_computes(watched: psutil.Process) -> None:
    """Until it has used CPU for longer than any answer takes."""
    start = watched.cpu_times().user
    deadline = time.monotonic() + DEADLINE_S
    while watched.cpu_times().user - start < 0.3:
        assert time.monotonic() < deadline, "the worker does not compute"
        time.sleep(0.01)
