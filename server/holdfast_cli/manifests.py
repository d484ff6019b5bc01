"""From a release folder to the two documents that are signed, and the files they name.

The bytes are deterministic: the same folder gives the same digests on every machine, so publishing twice changes nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from holdfast_cli import release_toml
from holdfast_cli.faults import Fault
from holdfast_cli.release_toml import ModelFile, ModelTable, ReleaseToml, TrainingData, VariantTable
from holdfast_shared import golden_cases, model_file, strict_json
from holdfast_shared import reference as reference_file
from holdfast_shared.errors import Malformed
from holdfast_shared.identifiers import Digest, digest_of
from holdfast_shared.wire.release import (
    BLOB_BYTES_MAX,
    Blob,
    DataSet,
    File,
    ModelRef,
    ModelVersion,
    Release,
    SelfTest,
    Stage,
    Variant,
)
from holdfast_shared.wiring import Plan

_CHUNK: Final = 1024 * 1024


class BuiltModel(NamedTuple):
    """A model's document and the bytes of it that are signed."""

    manifest: ModelVersion
    payload: bytes

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


class Built(NamedTuple):
    """What a folder says, ready to sign: payload bytes, and where each blob lies."""

    models: tuple[BuiltModel, ...]
    release: Release
    release_payload: bytes
    files: dict[Digest, Path]

    @property
    def release_digest(self) -> Digest:
        return digest_of(self.release_payload)


class _Hashed(NamedTuple):
    digest: Digest
    size_bytes: int


def build(folder: Path) -> Built:
    """Read, hash and check a release folder. Raises Malformed, Missing or NotSupported that lists every fault."""
    described = release_toml.read(folder)
    found: list[Fault] = []
    files: dict[Digest, Path] = {}
    manifests = [_model(folder, table, path, files, found) for path, table in described.tables.items()]
    self_test = _self_test(folder, described, files, found)
    reference = _reference(folder, described, files, found)
    if found or self_test is None:
        raise release_toml.as_error(found)
    models = tuple(BuiltModel(manifest, strict_json.encode(manifest)) for manifest in manifests if manifest is not None)
    release = _release(described, self_test, reference, models)
    return Built(models, release, strict_json.encode(release), files)


def _model(
    folder: Path, table: ModelTable, path: str, files: dict[Digest, Path], found: list[Fault]
) -> ModelVersion | None:
    variants = tuple(
        _variant(folder, variant, f"{path}.variants[{index}]", files, found)
        for index, variant in enumerate(table.variants)
    )
    data_set = _data_set(folder, table.training_data, f"{path}.training_data", found)
    if data_set is None:
        return None
    return ModelVersion(
        name=table.name,
        version=table.version,
        training_data=data_set,
        metrics=table.metrics,
        framework=table.framework,
        variants=variants,
        source_commit=table.source_commit,
        defects_fixed=table.defects_fixed,
        defects_known=table.defects_known,
        description=table.description,
    )


def _release(
    described: ReleaseToml, self_test: SelfTest, reference: Blob | None, models: tuple[BuiltModel, ...]
) -> Release:
    known = {
        model.manifest.name: ModelRef(name=model.manifest.name, version=model.manifest.version, digest=model.digest)
        for model in models
    }
    return Release(
        pipeline=described.pipeline,
        version=described.version,
        stages=tuple(
            Stage(name=step.name, model=known[step.model], inputs=dict(step.inputs)) for step in described.steps
        ),
        outputs=dict(described.answers),
        self_test=self_test,
        guardrails=described.guardrails,
        trial=described.trial,
        environments=described.environments,
        limits=described.limits,
        requires=described.requires,
        sentinels=described.sentinels,
        scores=described.scores or msgspec.UNSET,
        reference=reference,
        previous_may_go=described.previous_may_go,
        agent_version_min=described.agent_version_min,
        description=described.description,
        annotations=described.annotations,
    )


def _variant(folder: Path, variant: VariantTable, path: str, files: dict[Digest, Path], found: list[Fault]) -> Variant:
    typed = []
    for index, file in enumerate(variant.files):
        here = f"{path}.files[{index}]"
        hashed = _sent(folder, file.path, file.digest, here, "path", found)
        if hashed is None:
            continue
        if not hashed.size_bytes:
            found.append(Fault(f"{here}.path", f"{file.path} is empty"))
            continue
        files[hashed.digest] = folder / file.path
        typed.append(File(path=file.path, role=file.role, digest=hashed.digest, size_bytes=hashed.size_bytes))
        if file.role in model_file.ROLES[variant.runtime]:
            found += _file_faults(folder, file, variant, path, here)
    return Variant(
        name=variant.name,
        runtime=variant.runtime,
        hardware=variant.hardware,
        files=tuple(typed),
        inputs=variant.inputs,
        outputs=variant.outputs,
    )


def _file_faults(folder: Path, file: ModelFile, variant: VariantTable, path: str, here: str) -> list[Fault]:
    try:
        wrong = model_file.check(folder / file.path, variant.runtime, variant.inputs, variant.outputs)
    except Malformed as error:
        return [Fault(f"{here}.path", f"{file.path} {error.message}; {model_file.EXPORTS[variant.runtime]}")]
    return [Fault(f"{path}.{one.field}", f"{file.path} {one.words}") for one in wrong]


def _data_set(folder: Path, data: TrainingData, path: str, found: list[Fault]) -> DataSet | None:
    digest: str | None = data.digest
    if data.file is not None:
        hashed = _hash(folder, data.file, data.digest, path, "file", found)
        digest = hashed.digest if hashed else None
    return DataSet(name=data.name, digest=digest, rows=data.rows) if digest is not None else None


def _self_test(folder: Path, described: ReleaseToml, files: dict[Digest, Path], found: list[Fault]) -> SelfTest | None:
    table = described.self_test
    hashed = _sent(folder, table.file, table.digest, "self_test", "file", found)
    if hashed is None:
        return None
    if hashed.size_bytes > golden_cases.SIZE_BYTES_MAX:
        found.append(Fault("self_test.file", f"{table.file} is larger than {golden_cases.SIZE_BYTES_MAX} bytes"))
        return None
    plan = described.plan()
    assert isinstance(plan, Plan), "a folder that is wired wrongly was refused when it was read"
    wrong = golden_cases.faults_in((folder / table.file).read_bytes(), plan.inputs, plan.outputs)
    found += [Fault("self_test.file", words) for words in wrong]
    files[hashed.digest] = folder / table.file
    return SelfTest(
        blob=Blob(digest=hashed.digest, size_bytes=hashed.size_bytes),
        absolute_tolerance=table.absolute_tolerance,
        relative_tolerance=table.relative_tolerance,
    )


def _reference(folder: Path, described: ReleaseToml, files: dict[Digest, Path], found: list[Fault]) -> Blob | None:
    if described.reference is None:
        return None
    hashed = _sent(folder, described.reference, None, "", "reference", found)
    if hashed is None:
        return None
    if hashed.size_bytes > reference_file.SIZE_BYTES_MAX:
        words = f"{described.reference} is larger than {reference_file.SIZE_BYTES_MAX} bytes"
        found.append(Fault("reference", words))
        return None
    plan = described.plan()
    assert isinstance(plan, Plan), "a folder that is wired wrongly was refused when it was read"
    wrong = reference_file.faults_in(
        (folder / described.reference).read_bytes(),
        {tensor.name for tensor in plan.inputs},
        {tensor.name for tensor in plan.outputs},
    )
    found += [Fault("reference", f"{described.reference}: {words}") for words in wrong]
    files[hashed.digest] = folder / described.reference
    return Blob(digest=hashed.digest, size_bytes=hashed.size_bytes)


def _sent(folder: Path, name: str, stated: str | None, path: str, field: str, found: list[Fault]) -> _Hashed | None:
    """`_hash` of a file that will be uploaded: a link in somebody's folder must not publish what lies elsewhere here."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        found.append(Fault(_at(path, field), f"{name!r} leads outside the folder; copy the file into it"))
        return None
    return _hash(folder, name, stated, path, field, found)


def _hash(folder: Path, name: str, stated: str | None, path: str, field: str, found: list[Fault]) -> _Hashed | None:
    """SHA-256 and size of a file of the folder; a fault when it is missing, elsewhere, or not what was stated."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        found.append(Fault(_at(path, field), f"{name!r} lies outside the folder"))
        return None
    if (folder / name).exists() and not (folder / name).is_file():  # a pipe would be waited for, a device never ends
        found.append(Fault(_at(path, field), f"{name} is no regular file"))
        return None
    hasher, size = hashlib.sha256(), 0
    try:
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
                size += len(chunk)
    except OSError as error:
        found.append(Fault(_at(path, field), f"cannot read {name}: {error.strerror}"))
        return None
    if size > BLOB_BYTES_MAX:
        found.append(Fault(_at(path, field), f"{name} has {size} bytes; at most {BLOB_BYTES_MAX} are allowed"))
        return None
    digest = Digest("sha256:" + hasher.hexdigest())
    if stated is not None and stated != digest:
        found.append(Fault(f"{path}.digest", f"wrong hash: {stated} is stated, {name} has {digest}"))
    return _Hashed(digest, size)


def _at(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
