"""The gateway with the shipped worker and real models: real nulls, real hangs, real crashes, real clients."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from holdfast_gateway.control import Route
from holdfast_shared.assign import Target
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import Datatype, Limits
from support import digits_models, installed_release
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench, Http, running_gateway
from support.gateway_traffic import Load

pytestmark = pytest.mark.slow

SHIPPED = (sys.executable, "-m", "holdfast_worker")
# What of the agent's side no gateway may load: megabytes that a small device does not have.
UNWANTED = ("numpy", "onnxruntime", "cryptography", "_sqlite3", "paho", "urllib3")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[GatewayBench]:
    with running_gateway(tmp_path, worker=SHIPPED) as bench:
        yield bench


class Trial(NamedTuple):
    """A release on trial in front of a good one."""

    agent: AgentEnd
    good: Target
    bad: Target


def trial(bench: GatewayBench, model: bytes, **details: Any) -> Trial:
    good = Target(release=installed_release.install(bench.folder, PIPELINE, "1.0.0", digits_models.trained()))
    bad = Target(release=installed_release.install(bench.folder, PIPELINE, "1.2.0", model, **details))
    agent = bench.agent()
    agent.until_in_force(agent.serve(bad, refuge=good))
    agent.until_state(good, "ready")
    return Trial(agent, good, bad)


def ask(http: Http, image: np.ndarray) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"inputs": [installed_release.tensor("image", image.reshape(1, -1))]}).encode()
    status, _, answer = http.ask("POST", f"/v2/models/{PIPELINE}/infer", body)
    return status, json.loads(answer)


def test_images_on_which_a_release_is_null_are_answered_by_the_refuge(bench: GatewayBench) -> None:
    """Blank images; on the others the release answers well, and both are counted as they were."""
    found = trial(bench, digits_models.nan_on_some())
    with bench.http() as http:
        blank = [ask(http, image) for image in digits_models.blank_images()[:5]]
        inked = [ask(http, image) for image in digits_models.inked_images()[:20]]
    assert {(status, answer["model_version"]) for status, answer in blank} == {(200, "1.0.0")}
    assert {(status, answer["model_version"]) for status, answer in inked} == {(200, "1.2.0")}
    windows = {one.release: one for one in found.agent.windows()}
    bad, good = windows[found.bad.release], windows[found.good.release]
    assert (bad.requests, bad.nulls, bad.failed_over, bad.errors) == (
        len(blank) + len(inked),
        len(blank),
        len(blank),
        0,
    )
    assert (good.requests, good.nulls) == (len(blank), 0)


def test_a_model_that_hangs_is_killed_and_the_refuge_answers(bench: GatewayBench) -> None:
    limits = Limits(deadline_ms=400, load_deadline_s=30)
    found = trial(bench, digits_models.hangs_on_some(), limits=limits)
    with bench.http() as http:
        status, answer = ask(http, digits_models.blank_images()[0])
    assert (status, answer["model_version"]) == (200, "1.0.0")
    bad = next(one for one in found.agent.windows() if one.release == found.bad.release)
    assert (bad.errors, bad.hangs, bad.failed_over) == (1, 1, 1)
    found.agent.comes_to(found.bad, "ready")


def test_kill_9_of_the_serving_worker_under_load_fails_no_request(bench: GatewayBench) -> None:
    found = trial(bench, digits_models.trained(strength=0.1))
    body = json.dumps({"inputs": [installed_release.tensor("image", digits_models.images()[0].reshape(1, -1))]})
    with Load(bench, 4, raw=body.encode()) as load:
        for loads in range(1, 4):
            load.until_answered_by("1.2.0")
            status = found.agent.until(partial(_ready, found.bad, loads))
            os.kill(status.worker_pid, signal.SIGKILL)
            load.until_answered_by("1.0.0", 1)
        load.until_answered_by("1.2.0")
    assert load.failed == []
    windows = found.agent.windows()
    failed_over = sum(one.failed_over for one in windows)
    assert sum(one.requests + one.input_faults for one in windows) - failed_over == len(load.answers)


def _ready(target: Target, loads: int, message: Any) -> Any:
    slots = getattr(message, "slots", ())
    return next((one for one in slots if (one.target, one.state, one.loads) == (target, "ready", loads)), None)


def test_the_gateway_process_holds_no_runtime(bench: GatewayBench) -> None:
    """Looked up in its own memory map, after it has served."""
    trial(bench, digits_models.trained(strength=0.1))
    with bench.http() as http:
        assert ask(http, digits_models.images()[0])[0] == 200
    mapped = Path(f"/proc/{bench.pid}/maps").read_text()
    assert [name for name in UNWANTED if name in mapped] == []
    assert "httptools" in mapped


# -- the public Triton client, unchanged


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    """Three models: digits, text that comes back as it was, and whole numbers."""
    with running_gateway(tmp_path_factory.mktemp("triton"), worker=SHIPPED) as bench:
        refs = {
            PIPELINE: installed_release.install(bench.folder, PIPELINE, "1.0.0", digits_models.trained()),
            "text": _echo(bench, "text", "BYTES", ["a"]),
            "numbers": _echo(bench, "numbers", "INT64", [7]),
        }
        agent = bench.agent()
        routes = [Route(pipeline=name, serving=Target(release=ref)) for name, ref in refs.items()]
        agent.until_in_force(agent.route(*routes))
        host, port = bench.address
        client = triton.InferenceServerClient(f"{host}:{port}", concurrency=4)
        yield client
        client.close()


def _echo(bench: GatewayBench, name: str, datatype: Datatype, data: list[Any]) -> ReleaseRef:
    sides = {"inputs": "given", "outputs": "answered"}
    tensors = {side: (digits_models.tensor(tensor, datatype, (-1,)),) for side, tensor in sides.items()}
    case = {
        side: [{"name": tensor, "datatype": datatype, "shape": [1], "data": data}] for side, tensor in sides.items()
    }
    model = digits_models.echo(datatype)
    return installed_release.install(bench.folder, name, "3.0.0", model, golden=[case], **tensors)


def test_the_triton_client_asks_what_there_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(PIPELINE)
    assert client.is_model_ready(PIPELINE, "1.0.0")
    assert not client.is_model_ready(PIPELINE, "9.9.9")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert server["name"] == "holdfast"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata(PIPELINE)
    assert model["versions"] == ["1.0.0"]
    assert [one["name"] for one in model["inputs"]] == ["image"]
    index = {(one["name"], one["version"], one["state"]) for one in client.get_model_repository_index()}
    assert index == {(PIPELINE, "1.0.0", "READY"), ("text", "3.0.0", "READY"), ("numbers", "3.0.0", "READY")}
    with pytest.raises(InferenceServerException, match="by assignment"):
        client.load_model(PIPELINE)
    with pytest.raises(InferenceServerException, match="no such place"):
        client.get_model_config(PIPELINE)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_triton_client_infers(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    image = digits_models.images()[:3].astype(np.float32)
    given = triton.InferInput("image", list(image.shape), "FP32")
    given.set_data_from_numpy(image, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary_out)
    found = client.infer(PIPELINE, [given], outputs=[wanted], request_id="r-7", model_version="1.0.0")
    response = found.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-7", PIPELINE, "1.0.0")
    probabilities = found.as_numpy("probabilities")
    assert probabilities.shape == (3, 10)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_triton_client_reads_counts(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics(PIPELINE)["model_stats"][0]["inference_stats"]["success"]["count"]
    given = triton.InferInput("image", [1, 64], "FP32")
    given.set_data_from_numpy(digits_models.images()[:1].astype(np.float32))
    client.infer(PIPELINE, [given])
    after = client.get_inference_statistics()["model_stats"][0]["inference_stats"]
    assert after["success"]["count"] == before + 1
    assert 0 < after["compute_infer"]["ns"] < after["success"]["ns"]
    found = client.get_inference_statistics(PIPELINE, "1.0.0")["model_stats"][0]
    assert (found["version"], found["inference_count"]) == ("1.0.0", before + 1)
    assert found["memory_usage"][0]["byte_size"] > 20_000_000


def test_the_triton_client_infers_at_once_and_without_naming_outputs(client: triton.InferenceServerClient) -> None:
    image = digits_models.images()[:1].astype(np.float32)
    given = triton.InferInput("image", [1, 64], "FP32")
    given.set_data_from_numpy(image)
    pending = [client.async_infer(PIPELINE, [given], request_id=str(number)) for number in range(40)]
    answers = [one.get_result() for one in pending]
    assert [one.get_response()["id"] for one in answers] == [str(number) for number in range(40)]
    assert all(one.as_numpy("probabilities").shape == (1, 10) for one in answers)


@pytest.mark.parametrize("binary", [True, False])
def test_the_triton_client_sends_text_and_whole_numbers(client: triton.InferenceServerClient, binary: bool) -> None:
    text = np.array(["grüezi", "", "a\nb"], dtype=object)
    numbers = np.array([2**62, -1, 0], dtype=np.int64)
    for name, datatype, values in (("text", "BYTES", text), ("numbers", "INT64", numbers)):
        given = triton.InferInput("given", [3], datatype)
        given.set_data_from_numpy(values, binary_data=binary)
        wanted = triton.InferRequestedOutput("answered", binary_data=binary)
        found = client.infer(name, [given], outputs=[wanted]).as_numpy("answered")
        plain = [one.decode() if isinstance(one, bytes) else one for one in found.tolist()]
        assert plain == values.tolist()


def test_the_triton_client_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    image = digits_models.images()[:1].astype(np.float32)
    given = triton.InferInput("image", [1, 64], "FP32")
    given.set_data_from_numpy(image)
    with pytest.raises(InferenceServerException, match="unknown model 'nothing'"):
        client.infer("nothing", [given])
    with pytest.raises(InferenceServerException, match=r"version 1\.0\.0 does"):
        client.infer(PIPELINE, [given], model_version="2.0.0")
    with pytest.raises(InferenceServerException, match="gzip is not supported"):
        client.infer(PIPELINE, [given], request_compression_algorithm="gzip")
    wrong = triton.InferInput("picture", [1, 64], "FP32")
    wrong.set_data_from_numpy(image)
    with pytest.raises(InferenceServerException, match="picture"):
        client.infer(PIPELINE, [wrong])
    assert client.infer(PIPELINE, [given], response_compression_algorithm="gzip").as_numpy("probabilities") is not None
