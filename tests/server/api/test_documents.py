"""What devices fetch: exact bytes, ranges to resume from, entity tags to ask again with."""

from __future__ import annotations

import json

import pytest

from holdfast_server.api import ranges
from holdfast_server.store import outbox
from holdfast_shared import signing, strict_json
from holdfast_shared.assign import View, assign
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX, TYPE, Assignment
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE
from support.running_server import SAMPLE, Running, authorities, membership


@pytest.fixture
def digest(server: Running) -> str:
    """Of the sample release, which is published and rolled out to three devices in eu-west."""
    done = server.client.holdfast("publish", SAMPLE, key="mira")
    for number in range(3):
        server.client.ask("POST", "memberships", membership(f"dev-{number}"))
    server.client.holdfast("rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--start")
    return str(done["release"]["digest"])


def test_manifests_are_the_signed_bytes(server: Running, digest: str) -> None:
    shown = server.client.get("releases/iris/1.0.0").json
    for kind, wanted in ((RELEASE_TYPE, digest), (MODEL_TYPE, shown["models"][0]["digest"])):
        answer = server.client.get(f"manifests/{wanted}")
        assert answer.headers["ETag"] == f'"{wanted}"'
        verified = signing.verify(answer.data, kind, authorities().publisher_keys(None), size_bytes_max=1_000_000)
        assert digest_of(verified.payload) == wanted
    assert server.client.get("manifests/sha256:" + "0" * 64).error["code"] == "not-found"
    assert server.client.get("manifests/latest").error["field"] == "digest"


def test_a_blob_is_fetched_whole_or_from_where_it_broke_off(server: Running, digest: str) -> None:
    manifest = server.client.get("releases/iris/1.0.0").json["manifest"]
    blob = manifest["self_test"]["blob"]
    content = (SAMPLE / "golden.json").read_bytes()
    where, size = f"blobs/{blob['digest']}", blob["size_bytes"]
    whole = server.client.get(where)
    assert (whole.status, whole.data) == (200, content)
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["ETag"] == f'"{blob["digest"]}"'
    rest = server.client.get(where, range="bytes=100-")
    assert (rest.status, rest.data) == (206, content[100:])
    assert rest.headers["Content-Range"] == f"bytes 100-{size - 1}/{size}"
    assert server.client.get(where, range="bytes=10-19").data == content[10:20]
    assert server.client.get(where, range="bytes=-7").data == content[-7:]
    beyond = server.client.get(where, range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert beyond.error["code"] == "range-not-satisfiable"
    assert server.client.get(where, range="bytes=5-", if_range='"another"').status == 200
    assert server.client.get(where, range="bytes=5-", if_range=f'"{blob["digest"]}"').status == 206
    assert server.client.get(where, if_none_match=f'"{blob["digest"]}"').status == 304


def test_head_tells_all_but_the_bytes(server: Running, digest: str) -> None:
    blob = server.client.get("releases/iris/1.0.0").json["manifest"]["self_test"]["blob"]
    head = server.client.ask("HEAD", f"blobs/{blob['digest']}")
    assert (head.status, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(blob["size_bytes"])
    part = server.client.ask("HEAD", f"blobs/{blob['digest']}", range="bytes=0-9")
    assert (part.status, part.headers["Content-Length"]) == (206, "10")


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=5-", (5, 99)),
        ("bytes=5-200", (5, 99)),
        ("BYTES = 5 - 9", (5, 9)),
        ("bytes=-10", (90, 99)),
        ("bytes=-1000", (0, 99)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
        ("bytes=" + "9" * 40 + "-", None),
        (None, None),
    ],
)
def test_one_range_or_the_whole(header: str | None, span: tuple[int, int] | None) -> None:
    assert ranges.parse(header, 100) == span


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0)])
def test_a_range_of_nothing_cannot_be_had(header: str, size: int) -> None:
    with pytest.raises(ranges.NotSatisfiable):
        ranges.parse(header, size)


def test_assignments_are_the_bytes_that_go_to_the_broker(server: Running, digest: str) -> None:
    index = server.client.get("assignments/region/eu-west")
    payload_digest = index.json["pipelines"]["iris"]
    assert server.client.get("assignments/region/eu-west", if_none_match=index.headers["ETag"]).status == 304
    answer = server.client.get("assignments/region/eu-west/iris")
    assert answer.headers["ETag"] == f'"{payload_digest}"'
    with server.context.database.read() as connection:
        (stored,) = outbox.stored_documents(connection, "region/eu-west")
    assert answer.data == stored.envelope
    verified = signing.verify(answer.data, TYPE, authorities().director_keys(1), size_bytes_max=ENVELOPE_BYTES_MAX)
    assert digest_of(verified.payload) == payload_digest
    again = server.client.get("assignments/region/eu-west/iris", if_none_match=answer.headers["ETag"])
    assert (again.status, again.data) == (304, b"")


def test_a_prediction_is_what_the_device_will_decide(server: Running, digest: str) -> None:
    """Both sides ask the same `assign`."""
    document = json.loads(server.client.get("assignments/region/eu-west/iris").data)
    payload = signing.unverified_payload(json.dumps(document).encode(), TYPE, size_bytes_max=ENVELOPE_BYTES_MAX)
    parsed = strict_json.decode(payload, Assignment, what="assignment", size_bytes_max=ENVELOPE_BYTES_MAX)
    labels = {"region": "eu-west", "stage": "production", "device": "dev-1"}
    decision = assign([parsed], View(device="dev-1", labels=labels))
    (pipeline,) = server.client.get("devices/dev-1").json["pipelines"]
    assert decision.serve is not None
    assert pipeline["prediction"]["serve"] == {"version": "1.0.0", "digest": decision.serve.release.digest}
    assert pipeline["prediction"]["serve"]["digest"] == digest
    assert pipeline["state"] == "idle"
    assert pipeline["serving"] is None


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("assignments/region/nowhere", 404, "region"),
        ("assignments/device/nobody", 404, "device"),
        ("assignments/planet/earth", 404, "scope"),
        ("assignments/region/eu-west/nothing", 404, "pipeline"),
        ("assignments/region/EU", 400, "region"),
    ],
)
def test_what_there_is_no_document_for(server: Running, digest: str, path: str, status: int, field: str) -> None:
    answer = server.client.get(path)
    assert (answer.status, answer.error["field"]) == (status, field)
    assert server.client.get("assignments/device/dev-1").json == {"pipelines": {}}
