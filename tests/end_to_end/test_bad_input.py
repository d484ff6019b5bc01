"""Bad input by its user's door, to shipped processes: one clear error, and nothing changes.

Doors that other tests have in full: documents and blobs over HTTP (`server/api`), commands by MQTT (`server/broker`), release
folders (`cli`).
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pytest

from demonstration.digits import PIPELINE
from demonstration.processes import installed
from holdfast_cli import broker
from holdfast_cli.failures import Refused
from holdfast_shared import topics
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.signing import PrivateKey, sign
from holdfast_shared.wire.report import TYPE
from support import digits_models
from support.installed_release import tensor
from support.small_fleet import ANSWER_S, FLEET, SmallFleet, device, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD: Final = "1.0.0"
CAMERA, SPARE = device("camera-1"), device("camera-2", canary=False)
INFER: Final = f"/v2/models/{PIPELINE}/infer"


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    with small_fleet([CAMERA, SPARE]) as started:
        started.publish(GOOD, digits_models.trained())
        with started.application():
            started.roll_out(GOOD)
        yield started


# ---------------------------------------------------------------- applications: inference requests
class Wrong(NamedTuple):
    """A request, and what must be answered: a status and a word of the error."""

    status: int
    word: str
    body: bytes = b""
    path: str = INFER
    method: str = "POST"
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


def asking(**changed: Any) -> bytes:
    """A good request, but for what is changed of its one tensor."""
    return json.dumps({"inputs": [tensor("image", digits_models.inked_images()[:1]) | changed]}).encode()


REQUESTS: Final = {
    "no body": Wrong(400, "inference request"),
    "not JSON": Wrong(400, "inference request", b"\x00\xff{"),
    "cut off": Wrong(400, "inference request", asking()[:-9]),
    "nested without end": Wrong(400, "inference request", b'{"inputs":' + b"[" * 100_000),
    "no inputs": Wrong(400, "inputs", b"{}"),
    "another tensor": Wrong(400, "picture", asking(name="picture")),
    "another datatype": Wrong(400, "image", asking(datatype="INT64")),
    "another shape": Wrong(400, "image", asking(shape=[1, 63], data=[0.0] * 63)),
    "too few values": Wrong(400, "image", asking(data=[0.0])),
    "a text for a number": Wrong(400, "image", asking(data=["0"] * 64)),
    "NaN": Wrong(400, "inference request", asking().replace(b"0.0,", b"NaN,", 1)),
    "a batch of none": Wrong(400, "image", asking(shape=[0, 64], data=[])),
    "a shape of billions": Wrong(400, "image", asking(shape=[2**40, 64])),
    "a header longer than the body": Wrong(
        400, "Inference-Header-Content-Length", asking(), headers={"Inference-Header-Content-Length": "99999999"}
    ),
    "compressed": Wrong(415, "gzip", b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
    "another model": Wrong(404, "faces", asking(), path="/v2/models/faces/infer"),
    "another version": Wrong(404, "9.9.9", asking(), path=f"/v2/models/{PIPELINE}/versions/9.9.9/infer"),
    "another place": Wrong(404, "/v2", asking(), path="/predict"),
    "asked with GET": Wrong(405, "POST", method="GET"),
    "told to load": Wrong(403, "assignment", path=f"/v2/repository/models/{PIPELINE}/load"),
}


@pytest.mark.parametrize("wrong", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_malformed_request_gets_one_error_and_the_next_is_served(fleet: SmallFleet, wrong: Wrong) -> None:
    before = (fleet.slots(CAMERA), fleet.workers(CAMERA))
    answer = fleet.request(CAMERA, wrong.method, wrong.path, wrong.body, **wrong.headers)
    assert (answer.status, list(answer.body)) == (wrong.status, ["error"])
    assert wrong.word in answer.body["error"]
    assert fleet.ask(CAMERA, digits_models.inked_images()[0]).status == 200
    assert (fleet.slots(CAMERA), fleet.workers(CAMERA)) == before


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: minus one\r\n\r\n" % INFER.encode(), 400),
        (b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n" % INFER.encode(), 413),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    ],
    ids=["TLS", "no length", "a length of 100 GB", "a header of 100 kB"],
)
def test_what_is_no_http_request_is_told_so(fleet: SmallFleet, sent: bytes, status: int) -> None:
    """In the same form, before anything is read that was only announced; then the connection ends."""
    address = urlsplit(fleet.address(CAMERA))
    with socket.create_connection((address.hostname, address.port), timeout=ANSWER_S) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert list(json.loads(body)) == ["error"]
    assert fleet.ask(CAMERA, digits_models.inked_images()[0]).status == 200


# ---------------------------------------------------------------- devices: what they say to the server
@pytest.fixture(scope="module")
def quiet(fleet: SmallFleet) -> SmallFleet:
    """No agent speaks from here on, so that the server's store stands still; gateways serve as before."""
    for one in fleet.devices:
        fleet.processes.stop(f"agent-{one.id}")
    fleet.seen("the broker's word that they are away", lambda: fleet.presences() == {"offline"})
    return fleet


def test_what_no_device_said_is_dropped_and_told(quiet: SmallFleet) -> None:
    """Each kind by a line of the log that names its device and the reason; the store is what it was."""
    before = quiet.store()
    spare = PrivateKey.from_pem(quiet.provisioned.key(SPARE.id).read_bytes())
    quiet.send(topics.presence(FLEET, CAMERA.id), b"probably")
    quiet.send(topics.health(FLEET, CAMERA.id), b"\x00\xff")
    quiet.send(topics.event(FLEET, CAMERA.id), b"")
    quiet.send(topics.health(FLEET, CAMERA.id), sign(b"{}", TYPE, [spare]))
    quiet.send(topics.health(FLEET, "nobody"), sign(b"{}", TYPE, [spare]))
    for code, source in (("malformed", CAMERA.id), ("untrusted", CAMERA.id), ("unknown-device", "nobody")):
        line = f"dropped a message of '{source}' ({code})"
        quiet.seen(line, lambda line=line: line in quiet.processes.log("server").read_text())  # type: ignore[misc]  # mypy infers no type for a default
    assert quiet.store() == before


@pytest.mark.parametrize("payload", [b"", b"\x00", b'{"payload":"', b"[]"], ids=["empty", "bytes", "cut off", "a list"])
def test_a_malformed_command_gets_one_error_on_its_response_topic(quiet: SmallFleet, payload: bytes) -> None:
    before = quiet.store()
    with pytest.raises(Refused) as refused:
        broker.ask(BrokerAddress.parse(quiet.broker), fleet=FLEET, verb="rollback", message=payload)
    assert refused.value.code == "malformed"
    assert refused.value.next_step
    assert quiet.store() == before


# ---------------------------------------------------------------- people: the command line
@pytest.mark.parametrize(
    ("words", "field", "typo"),
    [
        (("device", "list", "regin=eu-west"), "segment", "regin"),
        (("device", "list", "region=eu-wset"), "segment", "eu-wset"),
        (("device", "list", "region"), "SEGMENT", "region"),
        (("rollout", "plan", PIPELINE, GOOD, "--segment", "rign=canary"), "segment", "rign"),
        (("rollout", "plan", PIPELINE, GOOD, "--wave", "100% ring=canari"), "waves[0].labels", "canari"),
        (("rollback", PIPELINE, GOOD, "--reason", "r", "--segment", "region=eu-wset"), "segment", "eu-wset"),
        (("device", "show", "camera-9"), "device", "camera-9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_typo_is_one_line_with_the_field_and_the_next_step(
    quiet: SmallFleet, words: tuple[str, ...], field: str, typo: str
) -> None:
    before = quiet.store()
    key = ("--server", quiet.server.address, "--key", str(quiet.provisioned.key("anna")))
    done = subprocess.run(
        [installed("holdfast"), *key, *words], capture_output=True, text=True, timeout=ANSWER_S, check=False
    )
    assert done.returncode in (1, 2)
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"holdfast: {field}: ")
    assert typo in line
    assert " Next: " in line
    assert quiet.store() == before
