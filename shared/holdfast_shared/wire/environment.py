"""`holdfast.environment/1`: what runs a model, signed by a publisher: Python packages as wheels by hash, and runtime settings.

Its digest is the SHA-256 of its raw payload; `system` is no document but what the device itself has. The worker enters it as
a wheel like any other, so an environment's worker may be older or newer than the device's gateway: `worker` says which
versions of the protocol it speaks.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from holdfast_shared.identifiers import DigestField, NameField, TextField
from holdfast_shared.semver import VersionField
from holdfast_shared.wire.release import BLOB_BYTES_MAX

TYPE: Final = "holdfast.environment/1"
WHEELS_MAX: Final = 256
# What a device unpacks at most: larger than any runtime we know, small enough that a mistake does not fill a disk.
UNPACKED_BYTES_MAX: Final = 8 * 1024**3
VARIABLES_MAX: Final = 16
# What an environment may set for its worker: how a runtime uses the processor and its memory. Nothing that chooses code, such
# as LD_PRELOAD or PYTHONPATH: code comes in wheels, by hash.
VARIABLES: Final = frozenset(
    {
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
        "MALLOC_ARENA_MAX",
        "MALLOC_TRIM_THRESHOLD_",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "OPENBLAS_NUM_THREADS",
        "TF_CPP_MIN_LOG_LEVEL",
    }
)

# PEP 427, and nothing that means more than a name to a path or a shell.
WheelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!+-]{0,195}\.whl$")]
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
VariableValue = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._,:=-]{0,128}$")]
ProtocolField = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """A blob. `unpacked_bytes` is what its files take together: space is planned before the first byte is fetched."""

    filename: WheelName
    digest: DigestField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=BLOB_BYTES_MAX)]
    unpacked_bytes: Annotated[int, msgspec.Meta(ge=0, le=UNPACKED_BYTES_MAX)]


class WorkerWheel(msgspec.Struct, frozen=True, kw_only=True):
    """Which wheel holds `holdfast_worker`, and the protocol versions it speaks, from `oldest` to `newest`."""

    filename: WheelName
    oldest: ProtocolField
    newest: ProtocolField

    def __post_init__(self) -> None:
        if self.oldest > self.newest:
            raise ValueError("`oldest` is above `newest`")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker runs. `threads`: what one inference may use."""

    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    variables: Annotated[dict[VariableName, VariableValue], msgspec.Meta(max_length=VARIABLES_MAX)] = {}


class Environment(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """One version of what runs a model. `requires_python` is a PEP 440 specifier, such as `>=3.11,<3.13`."""

    name: NameField
    version: VersionField
    requires_python: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    wheels: Annotated[tuple[Wheel, ...], msgspec.Meta(min_length=1, max_length=WHEELS_MAX)]
    worker: WorkerWheel
    settings: Settings = Settings()
    description: TextField = ""
    critical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [wheel.filename for wheel in self.wheels]
        if len(set(names)) != len(names):
            raise ValueError("a wheel stands there twice")
        if self.worker.filename not in names:
            raise ValueError(f"the worker's wheel {self.worker.filename} is not among the wheels")


def wheels_of(environment: Environment) -> dict[str, int]:
    """Digest → size of every blob that the environment is built from."""
    return {wheel.digest: wheel.size_bytes for wheel in environment.wheels}


def unpacked_bytes(environment: Environment) -> int:
    return sum(wheel.unpacked_bytes for wheel in environment.wheels)
