"""The device's edges against the real server and broker: what an operator published and rolled out arrives, byte for byte."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent.edge import blobs, configuration
from holdfast_agent.edge.broker import BrokerSession, Received
from holdfast_agent.edge.fetching import FetchEnded, FetchProcess
from holdfast_agent.edge.polling import AssignmentPoll, Polled
from support.mosquitto import Mosquitto, running_mosquitto
from support.reporting import eventually
from support.running_server import FLEET, SAMPLE, Client, membership, server_process

pytestmark = pytest.mark.slow
WITHIN_S = 30.0


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with running_mosquitto() as running:
        yield running


@pytest.fixture
def client(tmp_path: Path, broker: Mosquitto) -> Iterator[Client]:
    """A server with a release published, a device enrolled, and a rollout under way."""
    with server_process(tmp_path, mqtt=broker.url) as process:
        assert process.client is not None
        process.client.holdfast("publish", SAMPLE, key="mira")
        assert process.client.ask("POST", "memberships", membership("camera-7")).status == 201
        process.client.holdfast("rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--start")
        yield process.client


def configured(folder: Path, server: str) -> Path:
    path = folder / "agent.toml"
    device = {"id": "camera-7", "fleet": FLEET, "state": str(folder / "state"), "key": "/none", "membership": "/none"}
    device["authorities"] = str(folder / "authorities.json")
    lines = ["[device]", *(f"{name} = {json.dumps(value)}" for name, value in device.items())]
    path.write_text("\n".join([*lines, "[server]", f'url = "{server}"', "[broker]", 'url = "mqtt://127.0.0.1:1"']))
    return path


def digest_of(client: Client) -> str:
    found: Any = client.get("releases/iris/1.0.0").json
    return str(found["digest"])


def test_a_published_release_is_fetched_and_a_broken_off_one_is_resumed(tmp_path: Path, client: Client) -> None:
    path = configured(tmp_path, client.address)
    folder = configuration.load(path).folder
    ended: queue.SimpleQueue[FetchEnded] = queue.SimpleQueue()
    fetch = FetchProcess(path, ended.put)
    fetch.start(digest_of(client), "1.0.0", "iris")
    found = ended.get(timeout=WITHIN_S)
    assert (found.ok, found.detail) == (True, "")
    assert blobs.damaged(folder, digest_of(client)) == []
    release = blobs.release_of(folder, digest_of(client))
    assert release is not None
    models = blobs.models_of(folder, release)
    assert models is not None
    weights = models[0].variants[0].files[0].digest
    content = folder.blob(weights).read_bytes()
    assert content == (SAMPLE / "model.onnx").read_bytes()
    folder.blob(weights).unlink()
    folder.partial_blob(weights).write_bytes(content[: len(content) // 2])
    folder.partial_blob(weights).with_suffix(".etag").write_text(f'"{weights}"')
    fetch.start(digest_of(client), "1.0.0", "iris")
    assert ended.get(timeout=WITHIN_S).ok
    assert folder.blob(weights).read_bytes() == content
    fetch.start("sha256:" + "0" * 64, "1.0.0", "iris")
    assert ended.get(timeout=WITHIN_S).code == "fetch-refused"


def test_polling_and_the_broker_bring_the_same_document(client: Client, broker: Mosquitto) -> None:
    polled: queue.SimpleQueue[Polled] = queue.SimpleQueue()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    eventually(lambda: client.get("assignments/region/eu-west").json["pipelines"])
    poll = AssignmentPoll(url=client.address, region="eu-west", device="camera-7", poll_s=3600, emit=polled.put)
    session = BrokerSession(
        url=broker.url, fleet=FLEET, device="camera-7", region="eu-west", keepalive_s=30, emit=heard.put
    )
    for edge in (poll, session):
        edge.start()
    document = polled.get(timeout=WITHIN_S)
    while not isinstance(received := heard.get(timeout=WITHIN_S), Received):
        pass
    assert (document.scope_kind, document.name, document.pipeline) == ("region", "eu-west", "iris")
    assert received.payload == document.envelope
    eventually(lambda: client.get("devices/camera-7").json["presence"] == "online")
    session.stop()
    eventually(lambda: client.get("devices/camera-7").json["presence"] == "offline")
    poll.stop()
