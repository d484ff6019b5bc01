"""`release.toml`: what a publisher writes. Read strictly, every fault named at once by its path in the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from holdfast_cli import faults
from holdfast_cli.faults import Fault
from holdfast_shared import requirement, wiring
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
from holdfast_shared.model_file import ROLES
from holdfast_shared.semver import VersionField
from holdfast_shared.variants import unlike
from holdfast_shared.wire.release import (
    STAGES_MAX,
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
from holdfast_shared.wiring import REQUEST, Plan, Wired

NAME: Final = "release.toml"
SIZE_BYTES_MAX: Final = 256 * 1024
SAMPLE: Final = "compare with deploy/sample-release/release.toml"
# The one stage of a pipeline that is one model.
STAGE: Final = "model"

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


class StageTable(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a pipeline: `inputs` maps the model's inputs to `request.<tensor>` or `<stage>.<output>`."""

    name: NameField
    model: NameField
    inputs: dict[TensorField, TensorField]


class SelfTestTable(msgspec.Struct, frozen=True, kw_only=True):
    file: FilePath
    digest: DigestField | None = None
    absolute_tolerance: Annotated[float, msgspec.Meta(ge=0)]
    relative_tolerance: Annotated[float, msgspec.Meta(ge=0)]


NO_MODEL: Final = Fault("model", "is missing; describe the one model, or several in [[models]]")


class ReleaseToml(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file: one `model`, or `models` and the `stages` that they are used in.

    `outputs` maps an answer's name to `<stage>.<output>`. Of one model it is the output alone; left out, each keeps its name.
    """

    pipeline: NameField
    version: VersionField
    self_test: SelfTestTable
    guardrails: tuple[Guardrail, ...]
    trial: Trial
    model: ModelTable | None = None
    models: Annotated[tuple[ModelTable, ...], msgspec.Meta(max_length=STAGES_MAX)] = ()
    stages: Annotated[tuple[StageTable, ...], msgspec.Meta(max_length=STAGES_MAX)] = ()
    outputs: dict[TensorField, TensorField] = {}
    limits: Limits = Limits()
    environments: tuple[EnvironmentField, ...] = (SYSTEM_ENVIRONMENT,)
    requires: tuple[Requirement, ...] = ()
    sentinels: dict[TensorField, float] = {}
    scores: TensorField | None = None
    reference: FilePath | None = None
    previous_may_go: bool = False
    agent_version_min: VersionField | None = None
    description: TextField = ""
    annotations: dict[str, Any] = {}

    @property
    def tables(self) -> dict[str, ModelTable]:
        """Every model by its path in the file."""
        if self.model is not None:
            return {"model": self.model}
        return {f"models[{index}]": table for index, table in enumerate(self.models)}

    @property
    def steps(self) -> tuple[StageTable, ...]:
        """The stages; of one model, the one that it is."""
        if self.model is None:
            return self.stages
        inputs = {tensor.name: f"{REQUEST}.{tensor.name}" for tensor in self.model.variants[0].inputs}
        return (StageTable(name=STAGE, model=self.model.name, inputs=inputs),)

    @property
    def answers(self) -> dict[str, str]:
        """The answer's tensors, each by `<stage>.<output>`."""
        if self.model is None:
            return self.outputs
        named = self.outputs or {tensor.name: tensor.name for tensor in self.model.variants[0].outputs}
        return {name: f"{STAGE}.{source}" for name, source in named.items()}

    def plan(self) -> Plan | list[wiring.Fault]:
        """How the stages run. Every stage's model must be there."""
        known = {table.name: table.variants[0] for table in self.tables.values()}
        wired = [Wired(one.name, one.inputs, known[one.model].inputs, known[one.model].outputs) for one in self.steps]
        return wiring.plan(wired, self.answers)


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
        raise as_error(found if {"model", "models"} & table.keys() else [*found, NO_MODEL])
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
    for path, table in described.tables.items():
        found += _model_faults(table, path)
    whole = _stage_faults(described)
    if not whole:
        whole = _wiring_faults(described)
    found += whole
    if len(set(described.environments)) != len(described.environments) or not described.environments:
        found.append(Fault("environments", "names each environment once, the preferred one first"))
    found += [Fault(one.field, one.words) for one in requirement.faults_in(described.pipeline, described.requires)]
    for name in described.sentinels:
        if not whole and name not in described.answers:
            has = ", ".join(sorted(described.answers))
            found.append(Fault(f"sentinels.{name}", f"is no output of this release; it has {has}"))
    if not whole and described.scores is not None and described.scores not in described.answers:
        found.append(Fault("scores", f"is no output of this release; it has {', '.join(sorted(described.answers))}"))
    for index, guardrail in enumerate(described.guardrails):
        needed = {"accuracy_proxy": "scores", "drift": "reference"}.get(guardrail.metric)
        if needed is not None and getattr(described, needed) is None:
            found.append(Fault(f"guardrails[{index}].metric", f"{guardrail.metric} needs `{needed}`"))
    return found


def _model_faults(table: ModelTable, path: str) -> list[Fault]:
    found = []
    if table.training_data.file is None and table.training_data.digest is None:
        found.append(Fault(f"{path}.training_data", "name its `file`, to be hashed here, or state its `digest`"))
    for index, variant in enumerate(table.variants):
        found += _variant_faults(variant, f"{path}.variants[{index}]")
    wrong = unlike(table.variants)
    if wrong is not None:
        found.append(Fault(f"{path}.variants[{wrong.place}].{wrong.field}", wrong.words))
    return found


def _stage_faults(described: ReleaseToml) -> list[Fault]:
    """Whether there are models, and stages that use each of them."""
    if described.model is None and not described.models:
        return [NO_MODEL]
    if described.model is not None:
        both = [Fault("models", "there is a [model], too; write one or the other")] if described.models else []
        alone = [Fault("stages", "of one [model] there is one stage; write [[models]] for several")]
        return both + (alone if described.stages else [])
    if not described.stages:
        return [Fault("stages", "are missing: write [[stages]], each with its model and where its inputs come from")]
    known = [table.name for table in described.models]
    found = [
        Fault(f"models[{index}].name", f"another model is called {name}")
        for index, name in enumerate(known)
        if name in known[:index]
    ]
    found += [
        Fault(f"stages[{index}].model", f"there is no model {stage.model!r} here; there are {', '.join(known)}")
        for index, stage in enumerate(described.stages)
        if stage.model not in known
    ]
    used = {stage.model for stage in described.stages}
    found += [Fault(f"models[{i}]", f"no stage uses {name}") for i, name in enumerate(known) if name not in used]
    if not described.outputs:
        found.append(Fault("outputs", "are missing: name the answer's tensors, each with its `<stage>.<output>`"))
    return found


def _wiring_faults(described: ReleaseToml) -> list[Fault]:
    if described.model is not None:
        answers = {tensor.name for tensor in described.model.variants[0].outputs}
        return [
            Fault(f"outputs.{name}", f"the model has no output {source!r}; it has {', '.join(sorted(answers))}")
            for name, source in described.outputs.items()
            if source not in answers
        ]
    found = described.plan()
    return [] if isinstance(found, Plan) else [Fault(one.field, one.words) for one in found]


def _variant_faults(variant: VariantTable, path: str) -> list[Fault]:
    found = []
    roles = ROLES[variant.runtime]
    loaded = [file.path for file in variant.files if file.role in roles]
    if len(loaded) != 1:
        words = " or ".join(f"`{role}`" for role in roles)
        found.append(Fault(f"{path}.files", f"exactly one file has the role {words}; found {len(loaded)}"))
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

    if described.previous_may_go:
        later("previous_may_go", "`previous` is always kept; leave it out")
    for path, table in described.tables.items():
        for index, variant in enumerate(table.variants):
            if variant.runtime == "python" and SYSTEM_ENVIRONMENT in described.environments:
                words = f"a function in Python comes from an environment's wheels, and {SYSTEM_ENVIRONMENT!r} has none"
                later(f"{path}.variants[{index}].runtime", words)
    return found
