"""A registry with a sample release at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_cli import manifests
from holdfast_cli.manifests import Built
from holdfast_server.context import Context
from holdfast_server.registry.registry import Registry
from holdfast_shared import signing, strict_json
from holdfast_shared.errors import HoldfastError
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE, ModelVersion, Release
from support.running_server import KEYS, SAMPLE, store


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


def with_weights(shelf: Shelf, content: bytes, **fields: Any) -> ModelVersion:
    variant = shelf.built.models[0].manifest.variants[0]
    file = msgspec.structs.replace(variant.files[0], digest=digest_of(content), size_bytes=len(content))
    return msgspec.structs.replace(
        shelf.built.models[0].manifest,
        variants=(msgspec.structs.replace(variant, files=(msgspec.structs.replace(file, **fields),)),),
    )
