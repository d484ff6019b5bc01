"""`release.toml`: what a publisher writes. Read strictly, every fault named at once by its path in the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from holdfast_cli import faults
from holdfast_cli.faults import Fault
from holdfast_shared.errors import HoldfastError, Malformed, Missing, NotSupported
from holdfast_shared.identifiers import (
    SYSTEM_ENVIRONMENT,
    CounterField,
    DigestField,
    EnvironmentField,
    NameField,
    TensorField,
    TextField,
)
from holdfast_shared.semver import VersionField
from holdfast_shared.wire.release import (
    FileRole,
    Framework,
    Guardrail,
    Hardware,
    Limits,
    Requirement,
    Runtime,
    ShortText,
    Tensor,
    Trial,
)

NAME: Final = "release.toml"
SIZE_BYTES_MAX: Final = 256 * 1024
SAMPLE: Final = "compare with deploy/sample-release/release.toml"
# Judged from counts of requests; the others need parts that are not built yet.
GUARDRAIL_METRICS: Final = ("latency_ms_p99", "error_rate", "null_rate", "accuracy_proxy", "drift")

FilePath = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class TrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """`file` is hashed and stays where it is; or `digest` says what it was."""

    name: ShortText
    file: FilePath | None = None
    digest: DigestField | None = None
    rows: CounterField | None = None


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
    role: FileRole
    digest: DigestField | None = None


class VariantTable(msgspec.Struct, frozen=True, kw_only=True):
    name: NameField
    runtime: Runtime
    hardware: Hardware
    files: Annotated[tuple[ModelFile, ...], msgspec.Meta(min_length=1, max_length=256)]
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]


class ModelTable(msgspec.Struct, frozen=True, kw_only=True):
    name: NameField
    version: VersionField
    training_data: TrainingData
    metrics: Annotated[dict[ShortText, float], msgspec.Meta(min_length=1, max_length=64)]
    framework: Framework
    variants: Annotated[tuple[VariantTable, ...], msgspec.Meta(min_length=1)]
    source_commit: str = ""
    defects_fixed: tuple[TextField, ...] = ()
    defects_known: tuple[TextField, ...] = ()
    description: TextField = ""


class SelfTestTable(msgspec.Struct, frozen=True, kw_only=True):
    file: FilePath
    digest: DigestField | None = None
    absolute_tolerance: Annotated[float, msgspec.Meta(ge=0)]
    relative_tolerance: Annotated[float, msgspec.Meta(ge=0)]


class ReleaseToml(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `outputs` maps an answer's name to the model's output; left out, each keeps its own."""

    pipeline: NameField
    version: VersionField
    model: ModelTable
    self_test: SelfTestTable
    guardrails: tuple[Guardrail, ...]
    trial: Trial
    outputs: dict[TensorField, TensorField] = {}
    limits: Limits = Limits()
    environments: tuple[EnvironmentField, ...] = (SYSTEM_ENVIRONMENT,)
    requires: tuple[Requirement, ...] = ()
    sentinels: dict[TensorField, float] = {}
    stages: tuple[dict[str, Any], ...] = ()
    scores: TensorField | None = None
    reference: FilePath | None = None
    previous_may_go: bool = False
    agent_version_min: VersionField | None = None
    description: TextField = ""
    annotations: dict[str, Any] = {}


def read(folder: Path) -> ReleaseToml:
    """The folder's `release.toml`. Raises Missing, Malformed, or NotSupported, whose message lists every fault."""
    path = folder / NAME
    try:
        with path.open("rb") as stream:
            raw = stream.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise Missing(
            f"cannot read {path}: {error.strerror}", field="FOLDER", next_step=f"write one; {SAMPLE}"
        ) from error
    if len(raw) > SIZE_BYTES_MAX:
        raise Malformed(f"{path} is larger than {SIZE_BYTES_MAX} bytes", field="FOLDER", next_step=SAMPLE)
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"{path} is not TOML: {error}", field=NAME, next_step="correct that line") from error
    found = faults.of_table(table, ReleaseToml)
    if found:
        raise as_error(found)
    described = msgspec.convert(table, ReleaseToml)
    found = _contradictions(described)
    if found:
        raise as_error(found)
    return described


def as_error(found: list[Fault]) -> HoldfastError:
    """One error for all of them: malformed if any is, else not supported yet."""
    kind = NotSupported if all(not fault.supported for fault in found) else Malformed
    if len(found) == 1:
        return kind(f"{found[0].words} ({NAME})", field=found[0].path, next_step=f"correct it; {SAMPLE}")
    words = "; ".join(f"{number}) {fault}" for number, fault in enumerate(found, start=1))
    fields = ", ".join(fault.path for fault in found)
    return kind(f"{NAME} has {len(found)} faults: {words}.", field=fields, next_step=f"correct them all; {SAMPLE}")


def _contradictions(described: ReleaseToml) -> list[Fault]:
    """What each field alone cannot show, and what is reserved for later."""
    found = _reserved(described)
    data = described.model.training_data
    if data.file is None and data.digest is None:
        found.append(Fault("model.training_data", "name its `file`, to be hashed here, or state its `digest`"))
    for index, variant in enumerate(described.model.variants):
        found += _variant_faults(variant, f"model.variants[{index}]")
    answers = {tensor.name for tensor in described.model.variants[0].outputs}
    for name, source in described.outputs.items():
        if source not in answers:
            found.append(
                Fault(f"outputs.{name}", f"the model has no output {source!r}; it has {', '.join(sorted(answers))}")
            )
    if len(set(described.environments)) != len(described.environments) or not described.environments:
        found.append(Fault("environments", "names each environment once, the preferred one first"))
    given = set(described.outputs) or answers
    for name in described.sentinels:
        if name not in given:
            found.append(Fault(f"sentinels.{name}", f"is no output of this release; it has {', '.join(sorted(given))}"))
    if described.scores is not None and described.scores not in given:
        found.append(Fault("scores", f"is no output of this release; it has {', '.join(sorted(given))}"))
    for index, guardrail in enumerate(described.guardrails):
        needed = {"accuracy_proxy": "scores", "drift": "reference"}.get(guardrail.metric)
        if needed is not None and getattr(described, needed) is None:
            found.append(Fault(f"guardrails[{index}].metric", f"{guardrail.metric} needs `{needed}`"))
    return found


def _variant_faults(variant: VariantTable, path: str) -> list[Fault]:
    found = []
    weights = [file.path for file in variant.files if file.role == "weights"]
    if len(weights) != 1:
        found.append(Fault(f"{path}.files", f"exactly one file has the role `weights`; found {len(weights)}"))
    for kind, names in (
        ("files", [file.path for file in variant.files]),
        ("inputs", [tensor.name for tensor in variant.inputs]),
        ("outputs", [tensor.name for tensor in variant.outputs]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            found.append(Fault(f"{path}.{kind}", f"{', '.join(twice)} is there twice"))
    return found


def _reserved(described: ReleaseToml) -> list[Fault]:
    """What the format has a place for and Holdfast does not do yet: refused here, so that nobody relies on it."""
    found = []

    def later(path: str, words: str) -> None:
        found.append(Fault(path, f"not supported yet: {words}", supported=False))

    if described.stages:
        later("stages", "a pipeline of several models; describe the one model in [model]")
    if described.requires:
        later("requires", "leave it out, and order the rollouts by hand")
    if described.previous_may_go:
        later("previous_may_go", "`previous` is always kept; leave it out")
    if described.agent_version_min is not None:
        later("agent_version_min", "leave it out")
    if len(described.model.variants) > 1:
        later("model.variants", "one variant a model; publish the others as models of their own")
    for index, variant in enumerate(described.model.variants):
        if variant.runtime != "onnx":
            later(f"model.variants[{index}].runtime", f"{variant.runtime!r}; export the model as ONNX")
    for index, guardrail in enumerate(described.guardrails):
        if guardrail.metric not in GUARDRAIL_METRICS:
            later(f"guardrails[{index}].metric", f"{guardrail.metric!r}; use one of {', '.join(GUARDRAIL_METRICS)}")
    return found
