"""Publishing and enrolling by the operator's own command, and each bad input by its door: one clear error, nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast_cli import manifests
from holdfast_shared import signing
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE
from support.running_server import KEYS, SAMPLE, Running, membership, release_folder


def publish(server: Running, *folders: Path) -> None:
    for folder in folders:
        server.client.holdfast("publish", folder, key="mira")


def test_the_sample_release_is_published_and_shown(server: Running) -> None:
    done = server.client.holdfast("publish", SAMPLE, key="mira")
    assert (done["models"][0]["result"], done["release"]["result"]) == ("published", "published")
    assert done["uploaded_bytes"] > 0
    again = server.client.holdfast("publish", SAMPLE, key="mira")
    assert (again["models"][0]["result"], again["release"]["result"], again["uploaded_bytes"]) == (
        "unchanged",
        "unchanged",
        0,
    )
    (listed,) = server.client.holdfast("release", "list")["releases"]
    assert (listed["pipeline"], listed["version"], listed["publisher"]) == ("iris", "1.0.0", "mira")
    shown = server.client.holdfast("release", "show", "iris", "1.0.0")
    assert shown["digest"] == listed["digest"] == done["release"]["digest"]
    assert shown["models"][0]["manifest"]["metrics"] == {"accuracy": 0.973}


def test_a_pipeline_of_two_models_is_published_and_shown(server: Running) -> None:
    done = server.client.holdfast("publish", SAMPLE.with_name("sample-pipeline"), key="mira")
    assert [(one["name"], one["result"]) for one in done["models"]] == [
        ("digits-scale", "published"),
        ("digits-linear", "published"),
    ]
    shown = server.client.holdfast("release", "show", "digits", "1.0.0")
    assert [one["name"] for one in shown["manifest"]["stages"]] == ["scale", "classify"]
    assert [one["manifest"]["name"] for one in shown["models"]] == ["digits-scale", "digits-linear"]


def test_versions_are_listed_by_precedence_and_compared_by_field(server: Running, tmp_path: Path) -> None:
    versions = ("1.9.0", "1.10.0", "1.10.0-rc.1", "1.0.0")
    publish(server, *(release_folder(tmp_path, version=version, name=version) for version in versions))
    listed = server.client.holdfast("release", "list", "--pipeline", "iris")["releases"]
    assert [one["version"] for one in listed] == ["1.10.0", "1.10.0-rc.1", "1.9.0", "1.0.0"]
    differences = server.client.holdfast("release", "compare", "iris", "1.9.0", "1.10.0")["differences"]
    assert {one["field"]: (one["from"], one["to"]) for one in differences}["version"] == ("1.9.0", "1.10.0")
    assert {one["field"] for one in differences} == {"version", "digest"}


def test_a_requirement_that_nothing_published_meets_refuses_the_plan(server: Running, tmp_path: Path) -> None:
    """No device could ever go forward; the release itself may be published first."""
    folder = release_folder(tmp_path)
    spoil(folder, "[trial]", '[[requires]]\npipeline = "digits"\nat_least = "1.0.0"\n\n[trial]')
    publish(server, folder)
    shown = server.client.holdfast("release", "show", "iris", "1.0.0")["manifest"]["requires"]
    assert [(one["pipeline"], one["at_least"]) for one in shown] == [("digits", "1.0.0")]
    error = server.client.refused("rollout", "plan", "iris", "1.0.0")
    assert (error.code, error.field) == ("not-found", "requires[0]")
    assert "iris 1.0.0 requires digits from 1.0.0; none such is published" in error.message
    publish(server, SAMPLE.with_name("sample-pipeline"))
    assert server.client.refused("rollout", "plan", "iris", "1.0.0").field != "requires[0]", (
        "no device is enrolled here"
    )


# ---------------------------------------------------------------- bad input by the command
def spoil(folder: Path, before: str, after: str) -> None:
    file = folder / "release.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda f: spoil(f, "[model.framework]\n", "[model.framwork]\n"), "model.framework"),
        (lambda f: spoil(f, 'role = "weights"', f'role = "weights"\ndigest = "sha256:{"0" * 64}"'), "digest"),
        (lambda f: (f / "model.onnx").write_bytes(b"no model at all"), "model.variants[0].files[0].path"),
        (lambda f: (f / "golden.json").unlink(), "self_test.file"),
    ],
    ids=["a field is missing", "a wrong hash", "not ONNX", "a file is missing"],
)
def test_a_bad_folder_is_refused_before_anything_is_sent(
    server: Running, tmp_path: Path, change: Callable[[Path], Any], field: str
) -> None:
    folder = release_folder(tmp_path)
    change(folder)
    before = server.store()
    error = server.client.refused("publish", folder, key="mira")
    assert field in str(error)
    assert server.store() == before


def test_a_version_that_exists_with_other_content(server: Running, tmp_path: Path) -> None:
    publish(server, SAMPLE)
    folder = release_folder(tmp_path)
    spoil(folder, "soak_s = 600", "soak_s = 5")
    before = server.store()
    error = server.client.refused("publish", folder, key="mira")
    assert (error.code, error.field) == ("conflict", "version")
    assert manifests.build(SAMPLE).release_digest in error.message
    assert manifests.build(folder).release_digest in error.message
    assert server.store() == before


@pytest.mark.parametrize(
    ("words", "key", "code", "field"),
    [
        (("publish", SAMPLE), "eve", "untrusted", "signatures"),
        (("publish", SAMPLE), "anna", "untrusted", "signatures"),
        (
            ("device", "enrol", "dev-9", "--region", "eu-west", "--public-key", KEYS["eve"].public.to_text()),
            "anna",
            "untrusted",
            "signatures",
        ),
        (("rollout", "plan", "iris", "1.0.0"), "eve", "untrusted", "signatures"),
        (("rollout", "plan", "iris", "1.0.0"), "ben", "untrusted", "signatures"),
        (("rollout", "plan", "iris", "7.0.0"), "anna", "not-found", "version"),
        (("rollout", "plan", "irs", "1.0.0"), "anna", "not-found", "version"),
        (("rollout", "plan", "iris", "1.0.0", "--segment", "region=eu-wset"), "anna", "malformed", "segment"),
        (("rollout", "plan", "iris", "1.0.0", "--segment", "rgion=eu-west"), "anna", "malformed", "segment"),
        (("rollout", "start", "r-none"), "anna", "not-found", "rollout"),
        (("rollout", "status", "r-none"), "anna", "not-found", "rollout"),
        (("rollback", "iris", "1.0.0", "--reason", "x", "--segment", "site=none"), "anna", "malformed", "segment"),
        (("approve", "b-none"), "ben", "not-found", "rollback"),
        (("device", "show", "dev-none"), "anna", "not-found", "device"),
        (("device", "list", "region=eu-wset"), "anna", "malformed", "segment"),
        (("release", "show", "iris", "9.0.0"), "anna", "not-found", "version"),
    ],
    # The same in every process that collects them: no path of this checkout, no key of this run.
    ids=lambda value: " ".join(Path(str(word)).name for word in value[:4]) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_clear_error_and_changes_nothing(
    server: Running, words: tuple[str, ...], key: str, code: str, field: str
) -> None:
    publish(server, SAMPLE)
    for number in range(4):
        assert server.client.ask("POST", "memberships", membership(f"dev-{number}")).status == 201
    before = server.store()
    error = server.client.refused(*words, key=key)
    assert (error.code, error.field) == (code, field)
    assert server.store() == before


# ---------------------------------------------------------------- bad input over HTTP
def envelope(kind: str, **fields: Any) -> bytes:
    built = manifests.build(SAMPLE)
    payload = built.models[0].payload if kind == MODEL_TYPE else built.release_payload
    payload = json.dumps(json.loads(payload) | fields).encode()
    return signing.sign(payload, kind, [KEYS["mira"]])


def without_signature() -> bytes:
    return json.dumps(json.loads(envelope(MODEL_TYPE)) | {"signatures": []}).encode()


def with_a_duplicate_key() -> bytes:
    payload = manifests.build(SAMPLE).models[0].payload.replace(b'"name":', b'"name":"twice","name":', 1)
    return signing.sign(payload, MODEL_TYPE, [KEYS["mira"]])


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("models", b"", 400, "body"),
        ("models", b"not JSON", 400, "body"),
        ("models", b'{"payload": 1}', 400, "payload"),
        ("models", without_signature(), 400, "signatures"),
        ("models", envelope(RELEASE_TYPE), 400, "payloadType"),
        ("models", envelope(MODEL_TYPE, version="one"), 400, "version"),
        ("models", with_a_duplicate_key(), 400, "name"),
        ("models", envelope(MODEL_TYPE, critical=["new"]), 422, "critical"),
        ("releases", envelope(RELEASE_TYPE), 404, "stages[0].model.digest"),
        ("releases", envelope(RELEASE_TYPE, self_test=None), 400, "self_test"),
        ("memberships", membership("dev-1", signer="eve"), 403, "signatures"),
        ("memberships", membership("dev-1", signer="anna"), 403, "signatures"),
        ("memberships", membership("dev-1", fleet="other"), 403, "fleet"),
        ("memberships", membership("dev-1", public_key="?" * 44), 400, "public_key"),
        ("memberships", membership("Dev 1"), 400, "device"),
        ("memberships", membership("dev-1", critical=("moon",)), 422, "critical"),
        ("commands", membership("dev-1"), 400, "payloadType"),
        ("commands", b"[]", 400, "body"),
    ],
)
def test_a_bad_document_is_refused_with_its_field(
    server: Running, path: str, body: bytes, status: int, field: str
) -> None:
    before = server.store()
    answer = server.client.ask("POST", path, body)
    assert (answer.status, answer.error["field"]) == (status, field)
    assert server.store() == before


def test_a_bad_blob_is_refused_and_a_good_one_kept(server: Running) -> None:
    built = manifests.build(SAMPLE)
    asked = server.client.ask("POST", "models", envelope(MODEL_TYPE))
    assert asked.status == 202
    (missing,) = asked.json["missing"]
    content = built.files[missing["digest"]].read_bytes()
    assert missing["size_bytes"] == len(content)
    where = f"blobs/{missing['digest']}"
    before = server.store()
    for path, body, status, field in (
        (where, content[:-1] + b"x", 400, "digest"),
        (where, content[:-1], 400, "size_bytes"),
        (where, content + b"x", 413, "size_bytes"),
        ("blobs/sha256:" + "0" * 64, content, 404, "digest"),
        ("blobs/sha256:..", content, 400, "digest"),
    ):
        answer = server.client.ask("PUT", path, body)
        assert (answer.status, answer.error["field"]) == (status, field)
        assert server.store() == before
    assert server.client.ask("PUT", where, content).status == 201
    assert server.client.ask("PUT", where, content).status == 200
    assert server.client.ask("POST", "models", envelope(MODEL_TYPE)).status == 201
    assert server.client.ask("POST", "models", envelope(MODEL_TYPE)).status == 200


# ---------------------------------------------------------------- enrolment
def test_only_a_higher_counter_changes_a_membership(server: Running) -> None:
    def enrol(**fields: Any) -> int:
        return server.client.ask("POST", "memberships", membership("dev-1", **fields)).status

    assert enrol() == 201
    assert enrol() == 200
    before = server.store()
    assert enrol(labels={"ring": "canary"}) == 409
    assert enrol(counter=0) == 409
    assert server.store() == before
    assert enrol(counter=2, region="us-east", labels={"ring": "canary"}) == 201
    (one,) = server.client.holdfast("device", "list", "ring=canary, region=us-east")["devices"]
    assert (one["device"], one["counter"], one["labels"]) == ("dev-1", 2, {"ring": "canary"})


def test_enrolling_again_takes_the_next_counter(server: Running) -> None:
    words = ("device", "enrol", "dev-1", "--region", "eu-west", "--public-key", KEYS["eve"].public.to_text())
    assert server.client.holdfast(*words, key="otto")["counter"] == 1
    assert server.client.holdfast(*words, "--label", "site=a", key="otto")["counter"] == 2
    assert server.client.holdfast("device", "show", "dev-1")["labels"] == {"site": "a"}
