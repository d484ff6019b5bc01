"""What a manifest must satisfy beyond its form, and what is reserved for later and refused where it is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from holdfast_shared import requirement
from holdfast_shared.errors import Malformed, Missing, NotSupported
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.model_file import ROLES
from holdfast_shared.variants import unlike
from holdfast_shared.wire.environment import VARIABLES, Environment
from holdfast_shared.wire.release import ModelVersion, Release, Stage, Variant
from holdfast_shared.wiring import Plan, Wired, plan


def check_model(model: ModelVersion) -> None:
    """Raises NotSupported or Malformed that names the field."""
    _check_critical(model.critical, ModelVersion.__struct_fields__)
    for index, variant in enumerate(model.variants):
        _check_variant(variant, f"variants[{index}]")
    wrong = unlike(model.variants)
    if wrong is not None:
        raise Malformed(
            wrong.words,
            field=f"variants[{wrong.place}].{wrong.field}",
            next_step="give each variant a name of its own and the same tensors; publish what differs as another model",
        )


def check_environment(environment: Environment) -> None:
    """Raises NotSupported or Malformed that names the field."""
    _check_critical(environment.critical, Environment.__struct_fields__)
    try:
        SpecifierSet(environment.requires_python)
    except InvalidSpecifier as error:
        raise Malformed(
            str(error), field="requires_python", next_step="write a PEP 440 specifier, such as >=3.11,<3.13"
        ) from error
    for name in sorted(environment.settings.variables.keys() - VARIABLES):
        raise NotSupported(
            f"{name} may not be set for a worker",
            field=f"settings.variables.{name}",
            next_step=f"use one of {', '.join(sorted(VARIABLES))}",
        )
    for index, wheel in enumerate(environment.wheels):
        try:
            parse_wheel_filename(wheel.filename)
        except InvalidWheelFilename as error:
            raise Malformed(
                str(error), field=f"wheels[{index}].filename", next_step="name it as it was built"
            ) from error
    _check_once([wheel.digest for wheel in environment.wheels], "wheels")


def _check_once(digests: list[str], field: str) -> None:
    twice = sorted({digest for digest in digests if digests.count(digest) > 1})
    if twice:
        raise Malformed(f"{twice[0]} stands there twice", field=field, next_step="name each once")


def check_release(release: Release, models: Mapping[str, ModelVersion], environments: Collection[str]) -> Plan:
    """How its stages run. Raises NotSupported, Missing or Malformed that names the field.

    `models` and `environments`: those that are published, by digest.
    """
    _check_critical(release.critical, Release.__struct_fields__)
    _check_once(list(release.environments), "environments")
    for index, environment in enumerate(release.environments):
        if environment != SYSTEM_ENVIRONMENT and environment not in environments:
            raise Missing(
                f"no environment with digest {environment} is published",
                field=f"environments[{index}]",
                next_step="publish it first: holdfast environment publish",
            )
    if release.previous_may_go:
        raise NotSupported(
            "giving up `previous` for space is not supported yet", field="previous_may_go", next_step="leave it out"
        )
    for index, guardrail in enumerate(release.guardrails):
        if lacking := release.lacks(guardrail.metric):
            raise Malformed(
                f"a guardrail on {guardrail.metric} needs {lacking}",
                field=f"guardrails[{index}].metric",
                next_step=f"declare {lacking}, or leave the guardrail out",
            )
    wrong = requirement.faults_in(release.pipeline, release.requires)
    if wrong:
        raise Malformed(wrong[0].words, field=wrong[0].field, next_step="name each other pipeline once, with a range")
    if release.scored is not None and release.scored not in release.outputs:
        raise Malformed(
            f"{release.scored!r} is no output of the release",
            field="scores",
            next_step=f"use one of {', '.join(sorted(release.outputs))}",
        )
    return _plan(release, models)


def _check_critical(critical: Iterable[str], understood: Iterable[str]) -> None:
    unknown = sorted(set(critical) - set(understood))
    if unknown:
        raise NotSupported(
            f"it calls {', '.join(unknown)} critical, which this server does not know",
            field="critical",
            next_step="update the server, or leave the field out",
        )


def _check_variant(variant: Variant, path: str) -> None:
    roles = ROLES[variant.runtime]
    loaded = [file.path for file in variant.files if file.role in roles]
    if len(loaded) != 1:
        raise Malformed(
            f"a variant of runtime {variant.runtime} has one file of role {' or '.join(roles)}, this one {len(loaded)}",
            field=f"{path}.files",
            next_step="name the one file that the runtime loads; external data is not supported",
        )
    for field, names in (
        ("files", [file.path for file in variant.files]),
        ("inputs", [tensor.name for tensor in variant.inputs]),
        ("outputs", [tensor.name for tensor in variant.outputs]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise Malformed(f"{twice[0]!r} stands there twice", field=f"{path}.{field}", next_step="name each once")


def _plan(release: Release, models: Mapping[str, ModelVersion]) -> Plan:
    stages = []
    for index, stage in enumerate(release.stages):
        path = f"stages[{index}]"
        model = _model_of(stage, models, f"{path}.model")
        _check_runs_in(release, model, path)
        variant = model.variants[0]
        stages.append(Wired(stage.name, stage.inputs, variant.inputs, variant.outputs))
    found = plan(stages, release.outputs)
    if not isinstance(found, Plan):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Malformed(
            f"{found[0].words}{more}", field=found[0].field, next_step="wire each input of each stage to what feeds it"
        )
    for name in release.sentinels:
        if name not in release.outputs:
            raise Malformed(
                f"{name!r} is no output of the release",
                field=f"sentinels.{name}",
                next_step=f"use one of {', '.join(sorted(release.outputs))}",
            )
    return found


def _check_runs_in(release: Release, model: ModelVersion, path: str) -> None:
    """A function comes from an environment's wheels, and the device's own Python is nobody's to add to."""
    if SYSTEM_ENVIRONMENT in release.environments and any(variant.runtime == "python" for variant in model.variants):
        raise NotSupported(
            f"model {model.name} is a function in Python, which the environment `{SYSTEM_ENVIRONMENT}` has no wheels for",
            field=f"{path}.model",
            next_step="name an environment whose wheels bring it, and not `system`",
        )


def _model_of(stage: Stage, models: Mapping[str, ModelVersion], path: str) -> ModelVersion:
    model = models.get(stage.model.digest)
    if model is None:
        raise Missing(
            f"no model {stage.model.name} {stage.model.version} with digest {stage.model.digest} is published",
            field=f"{path}.digest",
            next_step="publish the model first; `holdfast publish` does both",
        )
    if (model.name, model.version) != (stage.model.name, stage.model.version):
        raise Malformed(
            f"{stage.model.digest} is {model.name} {model.version}, not {stage.model.name} {stage.model.version}",
            field=path,
            next_step="name the model as it was published",
        )
    return model
