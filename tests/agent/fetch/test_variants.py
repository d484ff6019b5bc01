"""Of a model's variants a device fetches the first that fits it, and that one alone is what it holds, verifies and loads."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast_agent.edge import blobs, configuration
from holdfast_agent.fetch.__main__ import machine_of
from holdfast_agent.fetch.outcome import Outcome
from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import digest_of
from holdfast_shared.variants import Machine
from holdfast_shared.wire.release import Hardware, Runtime
from holdfast_worker import release_runner
from support import digits_models, installed_release, tflite_models
from support.fetch_bench import Bench
from support.installed_release import Published, sealed
from support.published import MIRA, provisioned, publish

ANY = Machine("aarch64", 2**30, frozenset({"onnx", "tflite"}))


def of_variants(*hardware: Hardware, runtimes: tuple[Runtime, ...] = ("tflite", "onnx")) -> Published:
    """A release whose model has a variant for each, best first, with weights of its own."""
    first = publish()
    variant = first.models[0].variants[0]
    variants, blobs = [], {digest: blob for digest, blob in first.blobs.items() if digest != first.weights}
    for index, one in enumerate(hardware):
        weights = random.Random(index).randbytes(100_000)
        file = replace(variant.files[0], digest=digest_of(weights), size_bytes=len(weights))
        variants.append(replace(variant, name=f"v{index}", runtime=runtimes[index], hardware=one, files=(file,)))
        blobs[digest_of(weights)] = weights
    model = replace(first.models[0], variants=tuple(variants))
    stage = first.release.stages[0]
    named = replace(stage.model, digest=digest_of(strict_json.encode(model)))
    release = replace(first.release, stages=(replace(stage, model=named),))
    return sealed(release, (model,), blobs, MIRA)


def fetched(bench: Bench, published: Published) -> set[int]:
    """The places of the variants whose weights are here."""
    files = [variant.files[0].digest for variant in published.models[0].variants]
    return {index for index, digest in enumerate(files) if bench.folder.blob(digest).exists()}


def test_of_several_variants_only_the_first_that_fits_is_fetched(bench: Bench) -> None:
    """And what is not here is not missed: not by verification, not by garbage collection, not at the next fetch."""
    published = of_variants(Hardware(accelerators=("coral",)), Hardware(architectures=("aarch64",)))
    bench.serve(published)
    assert bench.fetch(published, machine=ANY).ok
    assert fetched(bench, published) == {1}
    assert blobs.damaged(bench.folder, published.digest) == []
    assert blobs.collect_garbage(bench.folder, {published.digest}) == 0
    bench.server.close()
    assert bench.fetch(published, machine=ANY).ok, "a complete target needs no network"
    assert blobs.collect_garbage(bench.folder, set()) == 5, "two manifests, the choice, weights and cases"


def test_an_accelerator_label_chooses_the_variant_that_asks_for_it(bench: Bench) -> None:
    published = of_variants(Hardware(accelerators=("coral",)), Hardware())
    bench.serve(published)
    machine = dataclasses.replace(ANY, accelerators=frozenset({"coral", "hailo"}))
    assert bench.fetch(published, machine=machine).ok
    assert fetched(bench, published) == {0}


def test_a_label_that_no_runtime_here_can_compute_on_is_passed_over_and_refused_with_what_is_missing(
    bench: Bench, tmp_path: Path
) -> None:
    """The device says that it has the accelerator; its onnxruntime, which is asked for real, has no provider for it."""
    path = tmp_path / "agent.toml"
    text = (Path(__file__).parents[3] / "deploy" / "agent.toml").read_text()
    path.write_text(text.replace("[device]", '[device]\naccelerators = ["cuda"]'))
    machine = machine_of(configuration.load(path))
    cuda = Hardware(accelerators=("cuda",))
    both, alone = of_variants(cuda, Hardware(), runtimes=("onnx", "onnx")), of_variants(cuda, runtimes=("onnx",))
    for published in (both, alone):
        bench.serve(published)
    assert bench.fetch(both, machine=machine).ok
    assert fetched(bench, both) == {1}
    ended = bench.fetch(alone, machine=machine)
    assert ended.code == "unfit"
    assert "needs cuda: CUDAExecutionProvider is not among the providers of the onnxruntime here" in ended.detail


def test_a_changed_machine_has_its_variant_at_the_next_fetch(bench: Bench) -> None:
    """Such as one whose runtime was taken away: what it needs now is fetched, and is what is verified from then on."""
    published = of_variants(Hardware(), Hardware())
    bench.serve(published)
    assert bench.fetch(published, machine=ANY).ok
    assert bench.fetch(published, machine=dataclasses.replace(ANY, runtimes=frozenset({"onnx"}))).ok
    assert fetched(bench, published) == {0, 1}
    bench.folder.blob(published.models[0].variants[0].files[0].digest).unlink()
    assert blobs.damaged(bench.folder, published.digest) == []


def test_no_variant_that_fits_is_refused_with_what_each_lacks(bench: Bench) -> None:
    published = of_variants(
        Hardware(accelerators=("coral",)),
        Hardware(memory_bytes_min=2**40),
        Hardware(),
        runtimes=("tflite", "onnx", "python"),
    )
    bench.serve(published)
    ended: Outcome = bench.fetch(published, machine=ANY)
    assert ended.code == "unfit"
    assert fetched(bench, published) == set()
    for words in (
        "v0 needs coral; here: none",
        f"v1 needs {2**40} bytes of memory; here are {2**30}",
        "v2 needs the runtime python; installed here: onnx, tflite",
    ):
        assert words in ended.detail


def test_the_worker_loads_the_variant_that_was_fetched(bench: Bench) -> None:
    """Not the first that would run there: its bytes are not here."""
    both = _in_two_formats()
    bench.serve(both)
    assert bench.fetch(both, machine=dataclasses.replace(ANY, runtimes=frozenset({"onnx"}))).ok
    runner = release_runner.load(bench.folder.manifests, bench.folder.blobs, both.digest)
    assert runner.fingerprint["runtime"].startswith("onnxruntime ")
    assert bench.fetch(both, machine=ANY).ok
    runner = release_runner.load(bench.folder.manifests, bench.folder.blobs, both.digest)
    assert runner.fingerprint["runtime"].startswith("ai-edge-litert ")


def _in_two_formats() -> Published:
    """The digits in TFLite, else in ONNX."""
    onnx = installed_release.publish("digits", "1.0.0", digits_models.trained(), key=MIRA)
    tflite = installed_release.publish("digits", "1.0.0", tflite_models.trained(), runtime="tflite", key=MIRA)
    variants = (replace(tflite.models[0].variants[0], name="lite"), onnx.models[0].variants[0])
    model = replace(onnx.models[0], variants=variants)
    stage = onnx.release.stages[0]
    reference = replace(stage.model, digest=digest_of(strict_json.encode(model)))
    release = replace(onnx.release, stages=(replace(stage, model=reference),))
    return sealed(release, (model,), {**tflite.blobs, **onnx.blobs}, MIRA)


def test_the_configuration_says_which_accelerators_there_are(tmp_path: Path) -> None:
    path, _ = provisioned(tmp_path, "http://127.0.0.1:1")
    text = path.read_text()
    path.write_text(text.replace("[device]", '[device]\naccelerators = ["coral"]'))
    assert configuration.load(path).device.accelerators == ("coral",)
    path.write_text(text.replace("[device]", '[device]\naccelerators = "coral"'))
    with pytest.raises(Malformed, match=r"\[device\] accelerators"):
        configuration.load(path)
