"""The registry on both databases: write-once, complete before it is registered, and unchanged by what it refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_cli import manifests
from holdfast_cli.manifests import Built
from holdfast_server.context import Context
from holdfast_server.core.rollout import Moment
from holdfast_server.refusals import Limited, TooLarge
from holdfast_server.registry import uploads
from holdfast_server.registry.registry import Registry
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, NotSupported, Untrusted
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE, ModelVersion, Release, Requirement
from support.running_server import KEYS, SAMPLE, database_url, server_context, store

replace = msgspec.structs.replace


class Shelf:
    """A registry with the sample release at hand, to publish as it is or changed."""

    def __init__(self, context: Context, folder: Path, sample: Path = SAMPLE) -> None:
        self.context, self.folder = context, folder
        self.registry: Registry = context.registry
        self.built: Built = manifests.build(sample)
        self.bytes = {digest: file.read_bytes() for digest, file in self.built.files.items()}

    def model(self, manifest: ModelVersion | None = None, *, signer: str = "mira") -> Any:
        return self.registry.publish_model(self.signed(manifest or self.built.models[0].manifest, MODEL_TYPE, signer))

    def release(self, manifest: Release | None = None, *, signer: str = "mira") -> Any:
        return self.registry.publish_release(self.signed(manifest or self.built.release, RELEASE_TYPE, signer))

    def signed(self, manifest: Any, kind: str, signer: str = "mira") -> bytes:
        return signing.sign(strict_json.encode(manifest), kind, [KEYS[signer]])

    def send(self, digest: str, content: bytes | None = None) -> bool:
        content = self.bytes[digest] if content is None else content  # type: ignore[index]  # a plain text will do
        return self.registry.receive(digest, len(content), iter([content[:100], content[100:]]))

    def publish(self) -> None:
        steps: list[Callable[[], Any]] = [functools.partial(self.model, one.manifest) for one in self.built.models]
        for once in (*steps, self.release):
            for digest in once().missing:
                self.send(digest)
            assert once().result in ("made", "unchanged")

    @property
    def weights(self) -> str:
        return next(one.digest for one in self.built.models[0].manifest.variants[0].files if one.role == "weights")

    def store(self) -> Any:
        return store(self.context, self.folder)

    def refuses(self, kind: type[HoldfastError], act: Callable[[], Any]) -> HoldfastError:
        """It is refused, names a field and a next step, and nothing is different afterwards."""
        before = self.store()
        with pytest.raises(kind) as caught:
            act()
        assert caught.value.field
        assert caught.value.next_step
        assert self.store() == before
        return caught.value


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    postgres = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with database_url(request.param, tmp_path, postgres) as url, server_context(url, tmp_path) as context:
        yield Shelf(context, tmp_path)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Shelf]:
    """One whose sample has two stages."""
    with database_url("sqlite", tmp_path, None) as url, server_context(url, tmp_path) as context:
        yield Shelf(context, tmp_path, SAMPLE.with_name("sample-pipeline"))


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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"previous_may_go": True}, "previous_may_go"),
        ({"agent_version_min": "1.0.0"}, "agent_version_min"),
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
    act = lambda: shelf.registry.receive(shelf.weights, len(content), iter(pieces))  # noqa: E731
    assert shelf.refuses(Malformed, act).field == "size_bytes"


def with_weights(shelf: Shelf, content: bytes, **fields: Any) -> ModelVersion:
    variant = shelf.built.models[0].manifest.variants[0]
    file = replace(variant.files[0], digest=digest_of(content), size_bytes=len(content))
    return replace(shelf.built.models[0].manifest, variants=(replace(variant, files=(replace(file, **fields),)),))


def test_weights_that_are_no_onnx_model_are_refused_on_arrival(shelf: Shelf) -> None:
    content = b"these are the bytes of something else"
    assert shelf.model(with_weights(shelf, content)).result == "missing"
    error = shelf.refuses(Malformed, lambda: shelf.send(digest_of(content), content))
    assert error.field == "variants[0].files[0]"
    assert "is not an ONNX model" in error.message


def test_weights_that_came_under_another_name_are_looked_at_all_the_same(shelf: Shelf) -> None:
    """The bytes lie here already, because another model calls them something else."""
    content = b"these are the bytes of something else"
    variant = shelf.built.models[0].manifest.variants[0]
    calibration = replace(
        variant.files[0], path="calibration.bin", role="calibration", digest=digest_of(content), size_bytes=len(content)
    )
    other = replace(
        shelf.built.models[0].manifest, name="other", variants=(replace(variant, files=(*variant.files, calibration)),)
    )
    for digest in shelf.model(other).missing:
        shelf.send(digest, content if digest == digest_of(content) else None)
    assert shelf.model(other).result == "made"
    error = shelf.refuses(Malformed, lambda: shelf.model(with_weights(shelf, content)))
    assert error.field == "variants[0].files[0]"


def test_weights_with_other_tensors_than_declared_are_refused(shelf: Shelf) -> None:
    variant = shelf.built.models[0].manifest.variants[0]
    inputs = (replace(variant.inputs[0], name="petals"),)
    model = replace(shelf.built.models[0].manifest, variants=(replace(variant, inputs=inputs),))
    shelf.model(model)
    error = shelf.refuses(Malformed, lambda: shelf.send(shelf.weights))
    assert "has no input 'petals'; it has features; also needs features" in error.message


def test_tflite_weights_are_looked_at_as_such(shelf: Shelf) -> None:
    """A publisher who names the wrong runtime hears it before any device does."""
    variant = shelf.built.models[0].manifest.variants[0]
    model = replace(shelf.built.models[0].manifest, variants=(replace(variant, runtime="tflite"),))
    shelf.model(model)
    error = shelf.refuses(Malformed, lambda: shelf.send(shelf.weights))
    assert error.field == "variants[0].files[0]"
    assert "is not a TFLite model" in error.message


def test_variants_with_other_tensors_are_refused(shelf: Shelf) -> None:
    """An application must not see which one a device runs."""
    model = shelf.built.models[0].manifest
    other = replace(model.variants[0], name="small", outputs=(replace(model.variants[0].outputs[0], shape=(1, 3)),))
    error = shelf.refuses(Malformed, lambda: shelf.model(replace(model, variants=(*model.variants, other))))
    assert error.field == "variants[1].outputs"


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
