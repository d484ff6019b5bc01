"""Which variant a machine runs: one pure choice, the first that fits, and one sentence when none does."""

from __future__ import annotations

from dataclasses import replace as changed

import pytest
from msgspec.structs import replace

from holdfast_shared.errors import Malformed
from holdfast_shared.variants import Lacking, Machine, choose, decode, none_fits, unlike
from holdfast_shared.wire.release import Hardware, ModelVersion, Tensor, Variant
from support import installed_release

PI = Machine("aarch64", 2**30, frozenset({"onnx"}))
MODEL = installed_release.publish("digits", "1.0.0", b"", golden=[]).models[0]


def variant(name: str, hardware: Hardware | None = None, runtime: str = "onnx") -> Variant:
    return replace(MODEL.variants[0], name=name, hardware=hardware or Hardware(), runtime=runtime)


def model(*variants: Variant) -> ModelVersion:
    return replace(MODEL, variants=variants)


def test_a_machine_is_the_same_after_it_was_reported() -> None:
    machine = Machine("aarch64", 2**30, frozenset({"tflite", "onnx"}), frozenset({"coral"}))
    assert Machine.of(machine.facts) == machine


@pytest.mark.parametrize(
    ("hardware", "machine"),
    [
        (Hardware(), PI),
        (Hardware(architectures=("x86_64", "aarch64")), PI),
        (Hardware(architectures=("ARM64",)), PI),
        (Hardware(architectures=("aarch64",)), changed(PI, architecture="arm64")),
        (Hardware(architectures=("amd64",)), changed(PI, architecture="x86_64")),
        (Hardware(memory_bytes_min=2**30), PI),
        (Hardware(accelerators=("coral",)), changed(PI, accelerators=frozenset({"coral", "hailo"}))),
    ],
)
def test_a_variant_fits_a_machine_that_has_all_it_asks_for(hardware: Hardware, machine: Machine) -> None:
    assert choose(model(variant("v", hardware)), machine) == variant("v", hardware)


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        (
            variant("v", Hardware(architectures=("armv7l",))),
            "hardware.architectures",
            "runs on armv7l; this is aarch64",
        ),
        (variant("v", Hardware(memory_bytes_min=2**31)), "hardware.memory_bytes_min", f"here are {2**30}"),
        (variant("v", Hardware(accelerators=("coral",))), "hardware.accelerators", "needs coral; here: none"),
        (variant("v", runtime="tflite"), "runtime", "needs the runtime tflite; installed here: onnx"),
    ],
)
def test_what_a_variant_lacks_is_named(wrong: Variant, field: str, words: str) -> None:
    found = choose(model(wrong), PI)
    assert isinstance(found, list)
    why = none_fits(model(wrong), found)
    assert (why.field, why.words.startswith("model digits ")) == (field, True)
    assert words in why.words


def test_the_first_that_fits_is_chosen_though_a_later_one_would_fit_too() -> None:
    coral, first, second = variant("coral", Hardware(accelerators=("coral",))), variant("first"), variant("second")
    assert choose(model(coral, first, second), PI) == first


def test_when_none_fits_each_is_told() -> None:
    both = model(variant("coral", Hardware(accelerators=("coral",))), variant("lite", runtime="tflite"))
    found = choose(both, PI)
    assert isinstance(found, list)
    assert none_fits(both, found) == Lacking(
        "variants",
        "no variant of model digits fits: coral needs coral; here: none;"
        " lite needs the runtime tflite; installed here: onnx",
    )


def test_variants_are_alike_to_an_application() -> None:
    other = Tensor(name="image", datatype="FP16", shape=(-1, 64))
    assert unlike([variant("a"), variant("b", runtime="tflite")]) is None
    assert unlike([variant("a"), variant("a")]) == (1, "name", "another variant is called a")
    found = unlike([variant("a"), replace(variant("b"), inputs=(other,))])
    assert found == (1, "inputs", "are others than those of variant a")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"variants": "cpu"}', b'{"variants": [1]}'])
def test_a_choice_that_cannot_be_read_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode(raw)
