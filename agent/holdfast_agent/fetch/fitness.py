"""Whether this agent understands a release, and this hardware runs it. Pure: asked before a byte of a blob is fetched."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_agent.fetch.outcome import Failed
from holdfast_shared.errors import NotSupported
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.release import ModelVersion, Release

RUNTIMES_BUILT: Final = frozenset({"onnx"})
METRICS_BUILT: Final = frozenset({"latency_ms_p99", "error_rate", "null_rate", "accuracy_proxy", "drift"})
# What one machine is called by different systems.
_SAME: Final = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Machine:
    architecture: str
    memory_bytes: int


def this_machine() -> Machine:
    return Machine(platform.machine(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_supported(release: Release, models: Sequence[ModelVersion], environment: str = SYSTEM_ENVIRONMENT) -> None:
    """Raises NotSupported: guessing at what a publisher calls critical could hurt, so going forward stops here."""
    _check_critical(release.critical, Release.__struct_fields__)
    if environment not in release.environments:
        raise NotSupported(
            f"the release was not validated in the environment {environment}, but in {', '.join(release.environments)}",
            field="environments",
            next_step="assign it in one of those",
        )
    for wrong, field in (
        (len(release.stages) > 1, "stages"),
        (bool(release.requires), "requires"),
        (release.agent_version_min is not None, "agent_version_min"),
        (any(guardrail.metric not in METRICS_BUILT for guardrail in release.guardrails), "guardrails"),
        (any(len(model.variants) > 1 for model in models), "variants"),
        (any(v.runtime not in RUNTIMES_BUILT for model in models for v in model.variants), "variants[0].runtime"),
    ):
        if wrong:
            raise NotSupported(
                "the release asks for what this agent does not do yet", field=field, next_step="update the agent"
            )
    for model in models:
        _check_critical(model.critical, ModelVersion.__struct_fields__)


def check_fit(models: Iterable[ModelVersion], machine: Machine) -> None:
    """Raises Failed `unfit`, naming what the model needs and what is here."""
    for model in models:
        hardware = model.variants[0].hardware
        wanted = {_SAME.get(name.lower(), name.lower()) for name in hardware.architectures}
        here = machine.architecture.lower()
        if wanted and _SAME.get(here, here) not in wanted:
            names = ", ".join(sorted(wanted))
            raise Failed(
                FailureCode.UNFIT, f"model {model.name} runs on {names}; this is {here}", field="hardware.architectures"
            )
        if hardware.accelerators:
            names = ", ".join(hardware.accelerators)
            raise Failed(
                FailureCode.UNFIT, f"model {model.name} needs {names}; none here", field="hardware.accelerators"
            )
        if hardware.memory_bytes_min > machine.memory_bytes:
            raise Failed(
                FailureCode.UNFIT,
                f"model {model.name} needs {hardware.memory_bytes_min} bytes of memory; here are {machine.memory_bytes}",
                field="hardware.memory_bytes_min",
            )


def _check_critical(critical: Iterable[str], understood: Iterable[str]) -> None:
    unknown = sorted(set(critical) - set(understood))
    if unknown:
        raise NotSupported(
            f"it calls {', '.join(unknown)[:200]} critical, which this agent does not know",
            field="critical",
            next_step="update the agent",
        )
