"""`holdfast.model/1` and `holdfast.release/1`: what a publisher signs.

A release's digest is the SHA-256 of its raw payload. It names its models by digest, and those name every blob by hash and
length of its plain bytes: a closed world, trusted from one signature down.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

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
from holdfast_shared.wire.assignment import ReleaseRef

MODEL_TYPE: Final = "holdfast.model/1"
RELEASE_TYPE: Final = "holdfast.release/1"
ENVELOPE_BYTES_MAX: Final = 512 * 1024
FILES_MAX: Final = 256
STAGES_MAX: Final = 32
VARIANTS_MAX: Final = 32
# One file of a model; a bigger one does not fit the devices we know.
BLOB_BYTES_MAX: Final = 4 * 1024**3

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
FileRole = Literal["weights", "preprocessing", "calibration", "hyperparameters", "serving"]
Runtime = Literal["onnx", "tflite", "python"]
Metric = Literal["latency_ms_p99", "error_rate", "null_rate", "accuracy_proxy", "drift", "memory_bytes"]
Action = Literal["fall_back", "halt", "report"]
ShortText = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    digest: DigestField
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One typed file of a model version; `path` is a name for people, never a place on a disk."""

    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
    role: FileRole
    digest: DigestField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=BLOB_BYTES_MAX)]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A named tensor in Open Inference Protocol terms; -1 is a dimension of any size."""

    name: TensorField
    datatype: Datatype
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1)], ...], msgspec.Meta(max_length=8)]


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant runs on. Empty `architectures`: any."""

    architectures: tuple[ShortText, ...] = ()
    accelerators: tuple[ShortText, ...] = ()
    memory_bytes_min: CounterField = 0


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a model version for one hardware target."""

    name: NameField
    runtime: Runtime
    hardware: Hardware
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1, max_length=FILES_MAX)]
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=64)]


class DataSet(msgspec.Struct, frozen=True, kw_only=True):
    name: ShortText
    digest: DigestField
    rows: CounterField | None = None


class Framework(msgspec.Struct, frozen=True, kw_only=True):
    name: ShortText
    version: ShortText


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=MODEL_TYPE):
    """An immutable version of a model: where it came from, how good it measured, what runs it."""

    name: NameField
    version: VersionField
    training_data: DataSet
    metrics: Annotated[dict[ShortText, float], msgspec.Meta(min_length=1, max_length=64)]
    framework: Framework
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1, max_length=VARIANTS_MAX)]
    source_commit: str = ""
    defects_fixed: tuple[TextField, ...] = ()
    defects_known: tuple[TextField, ...] = ()
    description: TextField = ""
    critical: tuple[str, ...] = ()


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    name: NameField
    version: VersionField
    digest: DigestField


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a pipeline. `inputs` maps the model's input names to `request.<name>` or `<stage>.<output>`."""

    name: NameField
    model: ModelRef
    inputs: dict[TensorField, TensorField]


class Guardrail(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that a device watches by itself, over the last `window_s` seconds, from `requests_min` requests on.

    `threshold` is milliseconds for latency_ms_p99, a share of 1 for rates, proxy and drift, bytes for memory_bytes
    (resident, of the worker that runs all the release's stages).
    """

    metric: Metric
    threshold: Annotated[float, msgspec.Meta(ge=0)]
    action: Action
    requests_min: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    window_s: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)]

    def __post_init__(self) -> None:
        if self.metric == "drift" and self.action == "fall_back":
            raise ValueError("drift may halt or report, never fall_back: it may be the data, not the model")


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """Golden inputs and outputs, a blob of `{"cases": [{"inputs": […], "outputs": […]}]}` in the protocol's JSON tensors."""

    blob: Blob
    absolute_tolerance: Annotated[float, msgspec.Meta(ge=0)]
    relative_tolerance: Annotated[float, msgspec.Meta(ge=0)]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """How long a candidate serves on trial before it is committed, and from how many requests it counts as proven."""

    soak_s: Annotated[int, msgspec.Meta(ge=0, le=7 * 86_400)]
    requests_min: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """Another pipeline on the same device, from `at_least` up to (not including) `below`."""

    pipeline: NameField
    at_least: VersionField
    below: VersionField | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker may use. A request past its deadline is a hang: the worker is killed and the other slot answers."""

    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=600_000)] = 1_000
    load_deadline_s: Annotated[int, msgspec.Meta(ge=1, le=3_600)] = 30
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=16 * 1024**2)] = 512 * 1024**2


class Release(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=RELEASE_TYPE):
    """One version of a pipeline: the unit that is signed, assigned, switched and rolled back."""

    pipeline: NameField
    version: VersionField
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=STAGES_MAX)]
    outputs: Annotated[
        dict[TensorField, TensorField], msgspec.Meta(min_length=1, max_length=64)
    ]  # answer's name → stage.output
    self_test: SelfTest
    guardrails: Annotated[tuple[Guardrail, ...], msgspec.Meta(max_length=32)]
    trial: Trial
    environments: Annotated[tuple[EnvironmentField, ...], msgspec.Meta(min_length=1, max_length=16)] = (
        SYSTEM_ENVIRONMENT,
    )
    limits: Limits = Limits()
    requires: tuple[Requirement, ...] = ()
    sentinels: dict[TensorField, float] = {}  # an output's declared null value
    reference: Blob | None = None  # reference-quantile bins for drift
    previous_may_go: bool = False  # `previous` may be given up for space once this release has soaked
    agent_version_min: VersionField | None = None
    description: TextField = ""
    annotations: dict[str, Any] = {}
    critical: tuple[str, ...] = ()
    # The output that holds a score of 0…1 for each class, along its last axis. Unset it is not written: what an earlier
    # version signed is written again as it was.
    scores: TensorField | msgspec.UnsetType = msgspec.UNSET

    @property
    def scored(self) -> str | None:
        """`scores`, or None where the release has none."""
        return self.scores if isinstance(self.scores, str) else None

    def lacks(self, metric: str) -> str:
        """The field without which `metric` never gets a count; empty when it is there, or none is needed."""
        if metric == "accuracy_proxy" and self.scored is None:
            return "scores"
        return "reference" if metric == "drift" and self.reference is None else ""


def blobs_of(
    release: Release, models: tuple[ModelVersion, ...], *, variants: tuple[str, ...] | None = None
) -> dict[str, int]:
    """Digest → size of every blob that the release needs, of all variants or of the named one of each stage."""
    wanted = {release.self_test.blob.digest: release.self_test.blob.size_bytes}
    if release.reference is not None:
        wanted[release.reference.digest] = release.reference.size_bytes
    for index, model in enumerate(models):
        for variant in model.variants:
            if variants is None or variant.name == variants[index]:
                wanted.update({file.digest: file.size_bytes for file in variant.files})
    return wanted


def reference_to(release: Release, digest: str) -> ReleaseRef:
    """How other documents name this release."""
    return ReleaseRef(version=release.version, digest=digest)
