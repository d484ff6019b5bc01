"""The registry on both databases: write-once, complete before it is registered, and unchanged by what it refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from holdfast_server.core.rollout import Moment
from holdfast_server.refusals import Limited, TooLarge
from holdfast_server.registry import uploads
from holdfast_server.registry.registry import Registry
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, NotSupported, Untrusted
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE, Requirement
from support.registry_shelf import Shelf, with_weights
from support.running_server import KEYS

replace = msgspec.structs.replace


# ---------------------------------------------------------------- the good way
def test_a_manifest_is_registered_once_all_its_blobs_are_here(shelf: Shelf) -> None:
    asked = shelf.model()
    assert asked.result == "missing"
    assert asked.missing == {shelf.weights: len(shelf.bytes[shelf.weights])}  # type: ignore[index]
    assert shelf.model() == asked
    assert shelf.send(shelf.weights)
    assert not shelf.send(shelf.weights)
    assert shelf.model().result == "made"
    assert shelf.model().result == "unchanged"
    release = shelf.release()
    assert set(release.missing) == {shelf.built.release.self_test.blob.digest}
    for digest in release.missing:
        shelf.send(digest)
    made = shelf.release()
    assert (made.result, made.digest) == ("made", shelf.built.release_digest)


def test_publishing_again_writes_nothing(shelf: Shelf) -> None:
    shelf.publish()
    before = shelf.store()
    shelf.publish()
    assert shelf.store() == before
    assert [row[3] for row in before[0]["decisions"]] == ["model published", "release published"]
    assert not before[0]["expected_uploads"]


def test_a_signature_by_another_publisher_does_not_make_it_another_release(shelf: Shelf) -> None:
    shelf.publish()
    envelope = signing.sign(shelf.built.release_payload, RELEASE_TYPE, [KEYS["mira"], KEYS["eve"]])
    assert shelf.registry.publish_release(envelope).result == "unchanged"


def test_a_lost_blob_is_asked_for_again(shelf: Shelf) -> None:
    shelf.publish()
    shelf.registry.blobs.remove(shelf.weights)
    assert list(shelf.model().missing) == [shelf.weights]
    assert shelf.send(shelf.weights)
    assert shelf.model().result == "unchanged"


@pytest.mark.parametrize("spoilt", [lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[:-1], lambda _: b""])
def test_a_blob_that_rotted_on_the_servers_disk_is_asked_for_again(
    shelf: Shelf, spoilt: Callable[[bytes], bytes]
) -> None:
    """Its name is a promise that devices hold it to: with other bytes nobody could fetch the release, nor mend it."""
    shelf.publish()
    for digest, content in shelf.bytes.items():
        shelf.registry.blobs.path_of(digest).write_bytes(spoilt(content))
    assert list(shelf.model().missing) == [shelf.weights]
    shelf.publish()
    assert shelf.registry.blobs.path_of(shelf.weights).read_bytes() == shelf.bytes[shelf.weights]  # type: ignore[index]
    assert (shelf.model().result, shelf.release().result) == ("unchanged", "unchanged")


# ---------------------------------------------------------------- write-once
@pytest.mark.parametrize("version", ["1.0.0", "1.0.0+built.twice"])
def test_a_version_never_gets_other_content(shelf: Shelf, version: str) -> None:
    shelf.publish()
    model = replace(shelf.built.models[0].manifest, version=version, description="other")
    error = shelf.refuses(Conflict, lambda: shelf.model(model))
    assert error.field == "version"
    release = replace(shelf.built.release, version=version, description="other")
    error = shelf.refuses(Conflict, lambda: shelf.release(release))
    assert shelf.built.release_digest in error.message
    assert digest_of(strict_json.encode(release)) in error.message


# ---------------------------------------------------------------- trust
def test_only_publishers_publish_and_only_their_pipelines(shelf: Shelf) -> None:
    shelf.publish()
    for signer in ("eve", "anna", "director"):
        assert shelf.refuses(Untrusted, functools.partial(shelf.model, signer=signer)).field == "signatures"
    release = replace(shelf.built.release, version="2.0.0")
    error = shelf.refuses(Untrusted, lambda: shelf.release(release, signer="faye"))
    assert error.message == "faye may not publish the pipeline iris"


def test_a_signature_over_other_bytes_is_none(shelf: Shelf) -> None:
    honest = json.loads(shelf.signed(shelf.built.models[0].manifest, MODEL_TYPE))
    other = json.loads(shelf.signed(replace(shelf.built.models[0].manifest, version="6.6.6"), MODEL_TYPE))
    forged = json.dumps({**other, "signatures": honest["signatures"]}).encode()
    assert shelf.refuses(Untrusted, lambda: shelf.registry.publish_model(forged)).field == "signatures"
    unsigned = json.dumps({**other, "signatures": []}).encode()
    shelf.refuses(Malformed, lambda: shelf.registry.publish_model(unsigned))
    model = shelf.signed(shelf.built.models[0].manifest, MODEL_TYPE)
    assert shelf.refuses(Malformed, lambda: shelf.registry.publish_release(model)).field == "payloadType"


# ---------------------------------------------------------------- what a manifest must say
@pytest.mark.parametrize("field", ["training_data", "metrics", "framework", "variants", "version"])
def test_a_model_without_a_field_is_refused(shelf: Shelf, field: str) -> None:
    fields = msgspec.to_builtins(shelf.built.models[0].manifest)
    del fields[field]
    error = shelf.refuses(Malformed, lambda: shelf.registry.publish_model(shelf.signed(fields, MODEL_TYPE)))
    assert f"`{field}`" in error.message


def test_the_least_version_of_an_agent_is_the_devices_to_judge(shelf: Shelf) -> None:
    shelf.publish()
    release = replace(shelf.built.release, version="2.0.0", agent_version_min="9.0.0")
    assert shelf.release(release).result == "made"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"previous_may_go": True}, "previous_may_go"),
        ({"critical": ("halting_problem",)}, "critical"),
    ],
)  # fmt: skip
def test_what_is_reserved_for_later_is_refused_where_it_is_written(
    shelf: Shelf, change: dict[str, Any], field: str
) -> None:
    shelf.publish()
    release = replace(shelf.built.release, version="2.0.0", **change)
    assert shelf.refuses(NotSupported, lambda: shelf.release(release)).field == field


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"inputs": {"image": "scale.picture"}}, "stages[1].inputs.image", "there is no scale.picture"),
        ({"inputs": {"image": "classify.probabilities"}}, "stages[1].inputs.image", "is FP32 [-1, 10]"),
        ({"inputs": {"image": "request.image"}}, "stages[0]", "nothing uses what scale answers"),
        ({"inputs": {}}, "stages[1].inputs.image", "is not wired"),
        ({"name": "scale"}, "stages[1].name", "another stage is called scale"),
    ],
)
def test_a_pipeline_that_is_wired_wrongly_is_refused(
    pipeline: Shelf, change: dict[str, Any], field: str, words: str
) -> None:
    pipeline.publish()
    scale, classify = pipeline.built.release.stages
    release = replace(pipeline.built.release, version="2.0.0", stages=(scale, replace(classify, **change)))
    error = pipeline.refuses(Malformed, lambda: pipeline.release(release))
    assert error.field == field
    assert words in error.message


def test_a_pipeline_needs_all_of_its_models(pipeline: Shelf) -> None:
    for digest in pipeline.model().missing:
        pipeline.send(digest)
    pipeline.model()
    assert pipeline.refuses(Missing, pipeline.release).field == "stages[1].model.digest"


def test_the_cases_of_a_pipeline_ask_and_answer_with_its_own_tensors(pipeline: Shelf) -> None:
    """What passes between two stages is no tensor of the release."""
    pipeline.publish()
    case = '{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": [0]}'
    content = f'{{"cases": [{{"inputs": [{case}], "outputs": [{case}]}}]}}'.encode()
    release = pipeline.built.release
    blob = replace(release.self_test.blob, digest=digest_of(content), size_bytes=len(content))
    changed = replace(release, version="2.0.0", self_test=replace(release.self_test, blob=blob))
    assert pipeline.release(changed).result == "missing"
    pipeline.send(blob.digest, content)
    error = pipeline.refuses(Malformed, lambda: pipeline.release(changed))
    assert error.field == "self_test.blob"
    assert "no such tensor; declared are pixels" in error.message


def test_a_function_in_python_is_refused_for_the_devices_own_environment(shelf: Shelf) -> None:
    """Nothing of a publisher's is installed there; in an environment of wheels it may be."""
    content = b'{"entry": "camera.scaling:scale"}'
    model = with_weights(shelf, content, role="preprocessing", path="scale.json")
    model = replace(model, version="2.0.0", variants=(replace(model.variants[0], runtime="python"),))
    for digest in shelf.model(model).missing:
        shelf.send(digest, content)
    assert shelf.model(model).result == "made"
    stage = shelf.built.release.stages[0]
    reference = replace(stage.model, version="2.0.0", digest=digest_of(strict_json.encode(model)))
    release = replace(shelf.built.release, stages=(replace(stage, model=reference),))
    error = shelf.refuses(NotSupported, lambda: shelf.release(release))
    assert error.field == "stages[0].model"
    assert "is a function in Python" in error.message


def test_a_file_that_names_no_function_is_no_stage(shelf: Shelf) -> None:
    content = b'{"entry": "import os"}'
    model = with_weights(shelf, content, role="serving", path="scale.json")
    model = replace(model, version="2.0.0", variants=(replace(model.variants[0], runtime="python"),))
    shelf.model(model)
    error = shelf.refuses(Malformed, lambda: shelf.send(digest_of(content), content))
    assert 'is not {"entry": "package.module:function"}' in error.message


@pytest.mark.parametrize(
    ("requires", "field"),
    [
        ([Requirement(pipeline="iris", at_least="1.0.0")], "requires[0].pipeline"),
        ([Requirement(pipeline="faces", at_least="1.0.0")] * 2, "requires[1].pipeline"),
        ([Requirement(pipeline="faces", at_least="2.0.0", below="2.0.0")], "requires[0].below"),
    ],
)
def test_a_requirement_that_nothing_could_meet_is_refused(
    shelf: Shelf, requires: list[Requirement], field: str
) -> None:
    shelf.publish()
    release = replace(shelf.built.release, version="2.0.0", requires=tuple(requires))
    assert shelf.refuses(Malformed, lambda: shelf.release(release)).field == field


def test_a_release_of_a_model_that_is_not_published(shelf: Shelf) -> None:
    assert shelf.refuses(Missing, shelf.release).field == "stages[0].model.digest"


def test_a_self_test_that_cannot_be_asked_is_refused(shelf: Shelf) -> None:
    """It would condemn a good release on every device."""
    shelf.publish()
    content = b'{"cases": [{"inputs": [], "outputs": []}]}'
    blob = replace(shelf.built.release.self_test.blob, digest=digest_of(content), size_bytes=len(content))
    release = replace(shelf.built.release, version="2.0.0", self_test=replace(shelf.built.release.self_test, blob=blob))
    assert shelf.release(release).result == "missing"
    shelf.send(blob.digest, content)
    assert shelf.refuses(Malformed, lambda: shelf.release(release)).field == "self_test.blob"


# ---------------------------------------------------------------- blobs
def test_only_what_a_manifest_asked_for_may_be_sent(shelf: Shelf) -> None:
    assert shelf.refuses(Missing, lambda: shelf.send(digest_of(b"anything"), b"anything")).field == "digest"


@pytest.mark.parametrize(
    ("spoil", "kind", "field"),
    [
        (lambda content: content[:-1], Malformed, "size_bytes"),
        (lambda content: content + b"x", TooLarge, "size_bytes"),
        (lambda content: content[:-1] + b"x", Malformed, "digest"),
    ],
    ids=["short", "long", "other"],
)
def test_other_bytes_than_the_manifest_names_are_refused(
    shelf: Shelf, spoil: Callable[[bytes], bytes], kind: type[HoldfastError], field: str
) -> None:
    shelf.model()
    spoilt = spoil(shelf.bytes[shelf.weights])  # type: ignore[index]
    assert shelf.refuses(kind, lambda: shelf.send(shelf.weights, spoilt)).field == field


def test_more_bytes_than_were_announced_are_refused(shelf: Shelf) -> None:
    shelf.model()
    content = shelf.bytes[shelf.weights]  # type: ignore[index]
    pieces = [content, b"more"]
    refused = shelf.refuses(Malformed, lambda: shelf.registry.receive(shelf.weights, len(content), iter(pieces)))
    assert refused.field == "size_bytes"


def test_a_wrong_size_of_bytes_that_are_here_is_refused(shelf: Shelf) -> None:
    shelf.publish()
    variant = shelf.built.models[0].manifest.variants[0]
    files = (replace(variant.files[0], size_bytes=7),)
    model = replace(shelf.built.models[0].manifest, version="2.0.0", variants=(replace(variant, files=files),))
    assert shelf.refuses(Malformed, lambda: shelf.model(model)).field == "size_bytes"


# ---------------------------------------------------------------- limits
def test_what_is_never_finished_is_forgotten_and_what_is_named_stays(shelf: Shelf) -> None:
    shelf.publish()
    content = b"sent, and then nobody came back"
    blob = replace(shelf.built.release.self_test.blob, digest=digest_of(content), size_bytes=len(content))
    release = replace(shelf.built.release, version="2.0.0", self_test=replace(shelf.built.release.self_test, blob=blob))
    shelf.release(release)
    shelf.send(blob.digest, content)
    shelf.registry.blobs.remove(shelf.weights)  # lost, asked for again and sent: still named by what is published
    shelf.model()
    shelf.send(shelf.weights)
    later = shelf.context.now().at + uploads.EXPECTED_US
    tomorrow = Registry(
        database=shelf.context.database,
        authorities=shelf.context.authorities,
        blobs=shelf.registry.blobs,
        now=lambda: Moment(at=later, monotonic_us=later),
    )
    tomorrow.sweep()
    assert sorted(shelf.registry.blobs.digests()) == sorted(shelf.bytes)
    assert not shelf.store()[0]["expected_uploads"]


def test_no_more_is_waited_for_than_the_limit(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "EXPECTED_BYTES_MAX", 100)
    assert shelf.refuses(Limited, shelf.model).field == "blobs"
