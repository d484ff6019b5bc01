"""Which variant of a model a device runs: the first that fits, as its publisher lists them best first. Pure.

The fetch chooses before a byte of a blob is fetched, and writes its choice down; who loads or verifies the release later reads
that, so that a changed machine asks for other bytes only when the release is fetched again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, NamedTuple, Protocol

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT, hex_of
from holdfast_shared.wire.environment import Environment
from holdfast_shared.wire.release import STAGES_MAX, ModelVersion, Tensor, Variant
from holdfast_shared.wire.report import MachineFacts

CHOICE_BYTES_MAX: Final = 8 * 1024
# Of its file's name.
CHOICE_SUFFIX: Final = ".variants"
# By how the names of packages begin: `onnxruntime_openvino` is one, too.
_BRINGS: Final = {"onnxruntime": "onnx", "ai_edge_litert": "tflite", "tflite_runtime": "tflite"}
# What one machine is called by different systems.
_SAME: Final = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a variant may ask for. `accelerators` are the labels that whoever set the device up gave it.

    `unusable`: by runtime and label, what that runtime misses to compute there; nothing: not known to miss anything.
    """

    architecture: str
    memory_bytes: int
    runtimes: frozenset[str]
    accelerators: frozenset[str] = frozenset()
    unusable: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, facts: MachineFacts) -> Machine:
        """As a device reported it."""
        return cls(facts.architecture, facts.memory_bytes, frozenset(facts.runtimes), frozenset(facts.accelerators))

    @property
    def facts(self) -> MachineFacts:
        """As a device reports it."""
        return MachineFacts(
            architecture=self.architecture,
            memory_bytes=self.memory_bytes,
            runtimes=tuple(sorted(self.runtimes)),
            accelerators=tuple(sorted(self.accelerators)),
        )


class Lacking(NamedTuple):
    """`field` is within the variant; `words` say what it needs and what is here."""

    field: str
    words: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The name of the chosen variant of each stage's model, in the order of the release's stages."""

    variants: Annotated[tuple[str, ...], msgspec.Meta(max_length=STAGES_MAX)]


def in_environment(machine: Machine, environment: Environment | None) -> Machine:
    """The machine with the runtimes that the environment's wheels bring; without one, as it is.

    Where no package is known to bring one, it is somebody's own build, and the worker will say whether it works.
    """
    if environment is None:
        return machine
    packages = {wheel.filename.partition("-")[0].lower() for wheel in environment.wheels}
    found = {runtime for package, runtime in _BRINGS.items() if any(one.startswith(package) for one in packages)}
    # It brings an onnxruntime of its own, of which nobody was asked yet.
    unusable = {runtime: labels for runtime, labels in machine.unusable.items() if runtime != "onnx"}
    return replace(machine, runtimes=frozenset({"python", *(found or _BRINGS.values())}), unusable=unusable)


def choose(model: ModelVersion, machine: Machine) -> Variant | list[Lacking]:
    """The first variant that fits, or what each of them lacks."""
    lacking = []
    for variant in model.variants:
        found = _lacking(variant, machine)
        if found is None:
            return variant
        lacking.append(found)
    return lacking


def none_fits(model: ModelVersion, lacking: Sequence[Lacking]) -> Lacking:
    """Why none does, in one sentence; of a model of one variant, the field that it lacks."""
    if len(lacking) == 1:
        return Lacking(lacking[0].field, f"model {model.name} {lacking[0].words}")
    each = "; ".join(f"{variant.name} {one.words}" for variant, one in zip(model.variants, lacking, strict=True))
    return Lacking("variants", f"no variant of model {model.name} fits: {each}")


class Unlike(NamedTuple):
    """The place of a variant that is not like the first, and in what."""

    place: int
    field: str
    words: str


class _Described(Protocol):
    """A variant, or the table of one in `release.toml`."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def outputs(self) -> tuple[Tensor, ...]: ...


def unlike(variants: Sequence[_Described]) -> Unlike | None:
    """The first fault: variants differ in hardware, runtime and files, never in what an application sees of them."""
    for index, variant in enumerate(variants):
        if any(variant.name == other.name for other in variants[:index]):
            return Unlike(index, "name", f"another variant is called {variant.name}")
        for field, ours, theirs in (
            ("inputs", variant.inputs, variants[0].inputs),
            ("outputs", variant.outputs, variants[0].outputs),
        ):
            if ours != theirs:
                return Unlike(index, field, f"are others than those of variant {variants[0].name}")
    return None


def decode(raw: bytes) -> Choice:
    """Raises Malformed."""
    return strict_json.decode(raw, Choice, what="the choice of variants", size_bytes_max=CHOICE_BYTES_MAX, depth_max=3)


def choice_name(digest: str, environment: str) -> str:
    """Of the file beside the manifests in which the choice for that release in that environment stands."""
    place = "" if environment == SYSTEM_ENVIRONMENT else f".{hex_of(environment)}"
    return f"{hex_of(digest)}{place}{CHOICE_SUFFIX}"


def named(model: ModelVersion, name: str) -> Variant | None:
    return next((variant for variant in model.variants if variant.name == name), None)


def _lacking(variant: Variant, machine: Machine) -> Lacking | None:
    hardware = variant.hardware
    wanted = {_one_name(name) for name in hardware.architectures}
    if wanted and _one_name(machine.architecture) not in wanted:
        return Lacking("hardware.architectures", f"runs on {', '.join(sorted(wanted))}; this is {machine.architecture}")
    missing = sorted(set(hardware.accelerators) - machine.accelerators)
    if missing:
        here = ", ".join(sorted(machine.accelerators)) or "none"
        return Lacking("hardware.accelerators", f"needs {', '.join(missing)}; here: {here}")
    unusable = machine.unusable.get(variant.runtime, {})
    for label in hardware.accelerators:
        if label in unusable:
            return Lacking("hardware.accelerators", unusable[label])
    if hardware.memory_bytes_min > machine.memory_bytes:
        words = f"needs {hardware.memory_bytes_min} bytes of memory; here are {machine.memory_bytes}"
        return Lacking("hardware.memory_bytes_min", words)
    if variant.runtime not in machine.runtimes:
        here = ", ".join(sorted(machine.runtimes)) or "none"
        return Lacking("runtime", f"needs the runtime {variant.runtime}; installed here: {here}")
    return None


def _one_name(architecture: str) -> str:
    lower = architecture.lower()
    return _SAME.get(lower, lower)
