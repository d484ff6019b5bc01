"""Whether this agent understands a release, and which variants of its models this machine runs.

Pure: asked before a byte of a blob is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast_agent.fetch.outcome import Failed
from holdfast_shared import __version__, variants
from holdfast_shared.errors import NotSupported
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.semver import Version
from holdfast_shared.variants import Machine
from holdfast_shared.wire.release import ModelVersion, Release, Variant


def check_supported(release: Release, models: Sequence[ModelVersion], environment: str = SYSTEM_ENVIRONMENT) -> None:
    """Raises NotSupported: guessing at what a publisher calls critical could hurt, so going forward stops here."""
    _check_critical(release.critical, Release.__struct_fields__)
    if environment not in release.environments:
        raise NotSupported(
            f"the release was not validated in the environment {environment}, but in {', '.join(release.environments)}",
            field="environments",
            next_step="assign it in one of those",
        )
    needed = release.agent_version_min
    if needed is not None and Version(__version__) < Version(needed):
        raise NotSupported(
            f"the release needs an agent of version {needed}; this one is {__version__}",
            field="agent_version_min",
            next_step="update the agent",
        )
    for model in models:
        _check_critical(model.critical, ModelVersion.__struct_fields__)


def choose(models: Iterable[ModelVersion], machine: Machine) -> tuple[str, ...]:
    """The name of each model's variant for this machine. Raises Failed `unfit`, naming what is needed and what is here."""
    names = []
    for model in models:
        found = variants.choose(model, machine)
        if not isinstance(found, Variant):
            why = variants.none_fits(model, found)
            raise Failed(FailureCode.UNFIT, why.words, field=why.field)
        names.append(found.name)
    return tuple(names)


def _check_critical(critical: Iterable[str], understood: Iterable[str]) -> None:
    unknown = sorted(set(critical) - set(understood))
    if unknown:
        raise NotSupported(
            f"it calls {', '.join(unknown)[:200]} critical, which this agent does not know",
            field="critical",
            next_step="update the agent",
        )
