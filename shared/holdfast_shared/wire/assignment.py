"""`holdfast.assignment/1`: what the devices of one scope should run of one pipeline. Signed by the director, cumulative."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from holdfast_shared import cohort, selector
from holdfast_shared.identifiers import CounterField, DeviceField, DigestField, EnvironmentField, NameField, TextField
from holdfast_shared.selector import Selector
from holdfast_shared.semver import VersionField

TYPE: Final = "holdfast.assignment/1"
# A device reads this over a slow link and on a small heap; a document at its limits refuses a plan, never a rollback.
PAYLOAD_BYTES_MAX: Final = 32 * 1024
ENVELOPE_BYTES_MAX: Final = 48 * 1024  # base64 and signatures around it
RULES_MAX: Final = 64
CONDEMNED_MAX: Final = 64
RETRY_MAX: Final = 64

BelowField = Annotated[int, msgspec.Meta(ge=0, le=cohort.BUCKETS)]
ShareField = Annotated[int, msgspec.Meta(ge=0, le=cohort.BUCKETS)]
Mode = Literal["serve", "keep", "stage", "shadow", "remove"]


class ReleaseRef(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A release on the wire: its version, and the SHA-256 of its manifest's raw payload, which decides."""

    version: VersionField
    digest: DigestField


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """A share, in 1/10 000, of the *requests* of a device; with `segment`, of those alone whose parameters it matches.

    Which requests: their bucket, salted with the release's digest, of the `session` parameter, else of the `id`.
    """

    share: ShareField
    segment: Selector = ()

    @property
    def in_words(self) -> str:
        """For people: `5 % of requests`, `100 % of requests with tier=beta`."""
        of = f" with {selector.written(self.segment)}" if self.segment else ""
        return f"{self.share / 100:g} % of requests{of}"


class TimeSpan(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """Part of a day in the device's time zone, `HH:MM` to `HH:MM`, past midnight if `to` is not after `from`."""

    from_: Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    to: Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    days: tuple[Annotated[int, msgspec.Meta(ge=0, le=6)], ...] = (0, 1, 2, 3, 4, 5, 6)


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """When going forward may download, and when it may switch. Empty: at any time."""

    download: tuple[TimeSpan, ...] = ()
    switch: tuple[TimeSpan, ...] = ()


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Applies to a device when `match` holds and its bucket under `salt` is below `below`."""

    mode: Mode
    release: ReleaseRef | None = None
    match: Selector = ()
    below: BelowField = cohort.BUCKETS
    salt: Annotated[str, msgspec.Meta(max_length=128)] = ""
    environment: EnvironmentField | None = None
    standby: ReleaseRef | None = None
    standby_environment: EnvironmentField | None = None
    requests: Requests | None = None
    spread_s: CounterField | None = None
    not_before: CounterField | None = None
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if (self.release is None) != (self.mode == "remove"):
            raise ValueError("every mode but `remove` names a release, and `remove` names none")


class Condemned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A release, an environment, or (both given) the pair, that may not run where `match` holds."""

    incident: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    match: Selector = ()
    release: ReleaseRef | None = None
    environment: EnvironmentField | None = None

    def __post_init__(self) -> None:
        if self.release is None and self.environment is None:
            raise ValueError("a condemnation names a release, an environment, or both")


class Retry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Lifts what a device condemned by itself at a lower attempt number."""

    release: ReleaseRef
    attempt: CounterField
    match: Selector = ()


class Scope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Either a region or one device."""

    region: NameField | None = None
    device: DeviceField | None = None

    def __post_init__(self) -> None:
        if (self.region is None) == (self.device is None):
            raise ValueError("a scope is either a region or a device")

    @property
    def key(self) -> str:
        """`region/<name>` or `device/<id>`: the document's key in a store, beside its pipeline."""
        return f"region/{self.region}" if self.region is not None else f"device/{self.device}"


class Assignment(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """The document. `(epoch, seq)` only grows for one (scope, pipeline)."""

    fleet: NameField
    scope: Scope
    pipeline: NameField
    epoch: CounterField
    seq: CounterField
    issued_at: CounterField
    not_after: CounterField
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=RULES_MAX)] = ()
    condemned: Annotated[tuple[Condemned, ...], msgspec.Meta(max_length=CONDEMNED_MAX)] = ()
    retry: Annotated[tuple[Retry, ...], msgspec.Meta(max_length=RETRY_MAX)] = ()
    floor: VersionField | None = None
    cause: TextField = ""
    critical: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.seq)


# Field names a document may call critical and that this code understands.
UNDERSTOOD: Final = frozenset(Assignment.__struct_fields__) | frozenset(Rule.__struct_fields__)
