"""Real wheels without a download: what is installed here, packed again by its own RECORD; and environments made of them."""

from __future__ import annotations

import functools
import importlib.metadata
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

import worker_wheel
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable, strict_json
from holdfast_shared.identifiers import digest_of
from holdfast_shared.signing import PrivateKey, sign
from holdfast_shared.wire import environment as wire
from holdfast_shared.wire.environment import Environment, Settings, Wheel, WorkerWheel
from holdfast_worker import protocol
from support.installed_release import PUBLISHER

# What no worker imports, and would only be unpacked and hashed again and again.
LEFT_OUT: Final = ("tests", "f2py", "transformers", "tools", "quantization", "datasets", "doc", "include")
# What the worker itself needs beside a runtime.
WORKER_NEEDS: Final = ("msgspec", "semver", "numpy")


class Packed(NamedTuple):
    filename: str
    content: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.content)

    def described(self) -> Wheel:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.filename
            path.write_bytes(self.content)
            size = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())
        return Wheel(filename=self.filename, digest=self.digest, size_bytes=len(self.content), unpacked_bytes=size)


class Made(NamedTuple):
    """An environment as a publisher hands it over."""

    environment: Environment
    digest: str
    envelope: bytes
    blobs: dict[str, bytes]

    def install(self, state: StateFolder) -> None:
        """Its manifest and wheels, as a fetch leaves them before it builds."""
        durable.make_folder(state.manifests)
        durable.make_folder(state.blobs)
        for digest, blob in self.blobs.items():
            if not state.blob(digest).exists():
                state.blob(digest).write_bytes(blob)
        durable.write_file(state.manifest(self.digest), self.envelope)


@functools.cache
def packed(name: str) -> Packed:
    """The distribution that is installed here, as a wheel."""
    found = importlib.metadata.distribution(name)
    assert found.files is not None
    info = next(one.parts[0] for one in found.files if one.parts[0].endswith(".dist-info"))
    files = {
        str(one): Path(str(one.locate())).read_bytes()
        for one in found.files
        if ".." not in one.parts
        and "__pycache__" not in one.parts
        and not set(LEFT_OUT) & set(one.parts)
        and one.suffix not in (".pyi", ".a", ".pyx", ".pxd")
        and one.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    }
    tag = next(line.partition(": ")[2] for line in str(found.read_text("WHEEL")).splitlines() if line.startswith("Tag"))
    filename = f"{info.removesuffix('.dist-info')}-{tag}.whl"
    return _written(filename, info, files)


def small(name: str, version: str, files: Mapping[str, bytes], tag: str = "py3-none-any") -> Packed:
    """A wheel of a test's own."""
    info = f"{name}-{version}.dist-info"
    pure = "true" if tag.endswith("none-any") else "false"
    given = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode(),
    }
    return _written(f"{name}-{version}-{tag}.whl", info, given)


@functools.cache
def worker() -> Packed:
    with tempfile.TemporaryDirectory() as folder:
        path = worker_wheel.build(Path(folder))
        return Packed(path.name, path.read_bytes())


def environment(
    version: str = "1.0.0",
    *,
    packages: Iterable[str] = (*WORKER_NEEDS, "onnxruntime"),
    more: Iterable[Packed] = (),
    worker_packed: Packed | None = None,
    settings: Settings | None = None,
    key: PrivateKey = PUBLISHER,
    changes: Mapping[str, Any] | None = None,
) -> Made:
    """Signed. `packages` are installed here; `more` are wheels of a test's own."""
    of_worker = worker_packed or worker()
    wheels = (of_worker, *(packed(name) for name in packages), *more)
    described = msgspec.structs.replace(
        Environment(
            name="onnx-cpu",
            version=version,
            requires_python=">=3.11",
            wheels=tuple(wheel.described() for wheel in wheels),
            worker=WorkerWheel(
                filename=of_worker.filename,
                oldest=protocol.OLDEST,
                newest=protocol.VERSION,
            ),
            settings=settings or Settings(),
        ),
        **(changes or {}),
    )
    payload = strict_json.encode(described)
    return Made(
        described,
        digest_of(payload),
        sign(payload, wire.TYPE, [key]),
        {wheel.digest: wheel.content for wheel in wheels},
    )


def _written(filename: str, info: str, files: Mapping[str, bytes]) -> Packed:
    with tempfile.TemporaryDirectory() as folder:
        path = worker_wheel.write(Path(folder), filename, info, dict(files), compress=False)
        return Packed(filename, path.read_bytes())
