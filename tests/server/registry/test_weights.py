"""Weights are looked at when they arrive: a model of the runtime that the manifest names, with the tensors that it declares."""

from __future__ import annotations

import msgspec

from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import digest_of
from support.registry_shelf import Shelf, with_weights

replace = msgspec.structs.replace


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
